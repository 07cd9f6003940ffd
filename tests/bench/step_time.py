"""`python -m tests.bench.step_time ADDRESS ROUNDS`: times of a trainer's step, as JSON on stdout.

Arms: `student_only` trains on the data alone; `remote_*` distils with targets that a server without
a model sends at once; `memory_*` distils with the very same targets already in memory, so that it
costs what the loss's arithmetic costs and nothing of the network.
"""

import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from typing import cast

import torch

from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.losses import TeacherHead
from student_trainer.parallel import Parallel
from student_trainer.states import BatchReader, MicroStep, NoisedStates, StateBatch
from student_trainer.targets import RemoteTeacher, TargetCounters, to_loss_targets
from tests.bench.cores import pin
from tests.bench.instant_targets import InstantTargets
from tests.bench.interleaved import Interleaved, Run, take_turns
from tests.bench.workload import Workload

NUM_WARMUP = 2
ENCODINGS: tuple[wire.Encoding, ...] = ("hidden", "top_k")
TEACHER_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, eq=False)
class StatesInMemory:
    """Noised states as in any run, with targets that were made before the run."""

    source: NoisedStates
    made: dict[MicroStep, StateBatch]

    def states(self, micro_step: MicroStep) -> list[StateBatch]:
        """One batch."""
        (batch,) = self.source.states(micro_step)
        return [dataclasses.replace(batch, targets=self.made[micro_step].targets)]


def _make_targets(
    source: NoisedStates, targets: InstantTargets, encoding: wire.Encoding, *, num_steps: int
) -> dict[MicroStep, StateBatch]:
    """The batches of every step with the targets that the server would send."""
    head = TeacherHead(torch.from_numpy(targets.head_VD.copy()))
    made = {}
    for micro_step in source.reader.micro_steps(0, num_steps):
        (batch,) = source.states(micro_step)
        records = [
            targets.record(encoding, sequence_id=row, state_L=xt_L.numpy())
            for row, xt_L in enumerate(batch.xt_BL)
        ]
        converted = to_loss_targets(
            records, head=head if encoding == "hidden" else None, temperature=1.0
        )
        made[micro_step] = dataclasses.replace(batch, targets=converted)
    return made


@dataclass(frozen=True, kw_only=True, eq=False)
class _Maker:
    """Makes the arms: each its own student, all with the same weights, data and masks."""

    workload: Workload
    address: str
    output_dir: str
    num_steps: int

    def arms(self) -> dict[str, Run]:
        runs = {"student_only": self._student_only()}
        for encoding in ENCODINGS:
            runs[f"remote_{encoding}"] = self._remote(encoding)
            runs[f"memory_{encoding}"] = self._memory(encoding)
        return runs

    def _student_only(self) -> Run:
        config, reader, denoiser = self._parts(DistillConfig(distillation_alpha=0.0))
        source = NoisedStates(reader=reader, config=config.train, teacher=None)
        return Run(
            config=config, denoiser=denoiser, reader=reader, source=source, counters=TargetCounters
        )

    def _remote(self, encoding: wire.Encoding) -> Run:
        config, reader, denoiser = self._parts(self._distill(encoding))
        client = TeacherClient(self.address)
        spec = wire.TargetSpec(encoding=encoding, top_k=self.workload.top_k)
        teacher = RemoteTeacher(client, spec=spec)
        return Run(
            config=config,
            denoiser=denoiser,
            reader=reader,
            source=NoisedStates(reader=reader, config=config.train, teacher=teacher),
            counters=lambda: teacher.counters,
            close=teacher.close,
        )

    def _memory(self, encoding: wire.Encoding) -> Run:
        config, reader, denoiser = self._parts(self._distill(encoding))
        noised = NoisedStates(reader=reader, config=config.train, teacher=None)
        made = _make_targets(
            noised, self.workload.instant_targets(), encoding, num_steps=self.num_steps
        )
        return Run(
            config=config,
            denoiser=denoiser,
            reader=reader,
            source=StatesInMemory(source=noised, made=made),
            counters=TargetCounters,
        )

    def _distill(self, encoding: wire.Encoding) -> DistillConfig:
        return DistillConfig(
            teacher_address=self.address, encoding=encoding, teacher_timeout_s=TEACHER_TIMEOUT_S
        )

    def _parts(self, distill: DistillConfig) -> tuple:
        denoiser = self.workload.new_student()
        config = Config(
            data=DataConfig(train_path="none"),
            train=TrainConfig(
                output_dir=self.output_dir, micro_batch_size=self.workload.micro_batch_size
            ),
            distill=distill,
        )
        reader: BatchReader = self.workload.reader(denoiser.info, num_steps=self.num_steps)
        return config, reader, denoiser


def measure(address: str, *, num_rounds: int) -> Interleaved:
    """Runs every arm against the server without a model at `address`."""
    with tempfile.TemporaryDirectory() as folder:
        maker = _Maker(
            workload=Workload(),
            address=address,
            output_dir=folder,
            num_steps=NUM_WARMUP + num_rounds,
        )
        return take_turns(
            maker.arms(),
            num_warmup=NUM_WARMUP,
            num_rounds=num_rounds,
            parallel=Parallel(device=torch.device("cpu")),
        )
