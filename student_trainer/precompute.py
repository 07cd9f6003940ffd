"""`distill precompute`: a teacher's targets for a data set or for a training run, into a store.

Exit codes: 0 done, 1 failed, 2 misused.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from masked_diffusion.families import Denoiser
from student_trainer import config_file, readers, sources, train
from student_trainer.config import Config
from student_trainer.interrupt import StopRequest
from student_trainer.parallel import Parallel
from student_trainer.precompute_options import PrecomputeOptions, parse
from student_trainer.prefetch import Prefetcher
from student_trainer.recording import RecordingTeacher
from student_trainer.states import BatchReader, MicroStep
from student_trainer.store.folder import StoreFolder
from student_trainer.store.head import save_head
from student_trainer.store.identity import StoreIdentity
from student_trainer.store.reader import StoreReader
from student_trainer.store.records import Unit
from student_trainer.store.writer import StoreWriter
from student_trainer.stored_plan import SequentialPlan, dataset_key, dataset_plan, run_plan
from student_trainer.student import StudentSpec, outline_student
from student_trainer.targets import RemoteTeacher
from student_trainer.teacher_folder import link_with_config

logger = logging.getLogger(__name__)


def run(options: PrecomputeOptions) -> dict[str, int]:
    """Computes what the store misses; returns the writer's totals.

    SIGTERM ends it after the micro-step that is waited for: what was computed is published, and
    the next run makes the rest.
    """
    parallel = Parallel(device=torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        options = _with_local_folders(options, stack)
        config = options.config
        teacher = sources.connect_teacher(
            config,
            parallel,
            stack,
            teacher_arguments=[] if options.device is None else [f"--device={options.device}"],
        )
        denoiser = _without_weights(config)
        sources.check_fits(denoiser.info, teacher, config)
        work = _work(options, denoiser, teacher, parallel)
        # Left last of what follows: a second one does not stop the open shard's being published.
        request = stack.enter_context(StopRequest())
        writer = stack.enter_context(
            StoreWriter(
                options.output_path,
                _identity(options, work.reader, teacher),
                share=options.share,
                max_shard_bytes=options.max_shard_bytes,
                max_shard_age_s=options.max_shard_age_s,
            )
        )
        _save_head(options.output_path, teacher)
        work.store = stack.enter_context(StoreReader(options.output_path))
        prefetcher = Prefetcher(
            work.micro_steps(),
            work.units,
            window=config.distill.prefetch_window,
            on_close=teacher.close,
        )
        with prefetcher:
            for units in prefetcher:
                for unit in units:
                    writer.add(unit)
                if request.is_set:
                    break
        if request.is_set:
            writer.flush()
            logger.warning("stopped signal=SIGTERM; run it again to compute the rest")
        else:
            writer.finish()
        return writer.counts


def _with_local_folders(
    options: PrecomputeOptions, stack: contextlib.ExitStack
) -> PrecomputeOptions:
    """Gives what is needed beside the store a place on this machine: logs, tokens, a config."""
    config = options.config
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precompute_")))
    if (
        config.train.output_dir == options.output_path
        and not StoreFolder(options.output_path).is_local
    ):
        config = replace(config, train=replace(config.train, output_dir=str(scratch)))
    if options.teacher_config_path is not None:
        assert config.distill.teacher_model_path is not None
        path = link_with_config(
            config.distill.teacher_model_path, options.teacher_config_path, scratch / "teacher"
        )
        config = replace(config, distill=replace(config.distill, teacher_model_path=path))
    return replace(options, config=config)


@dataclass(kw_only=True, eq=False)
class _Work:
    """The micro-steps of this worker, and what each of them adds to the store."""

    options: PrecomputeOptions
    reader: BatchReader
    num_steps: int
    teacher: RemoteTeacher
    store: StoreReader | None = None

    def micro_steps(self) -> Iterator[MicroStep]:
        """Every n-th micro-step: all workers go forward together, as a reader that follows does."""
        share = self.options.share
        for number, micro_step in enumerate(self.reader.micro_steps(0, self.num_steps)):
            if number % share.total == share.number:
                yield micro_step

    def units(self, micro_step: MicroStep) -> list[Unit]:
        """The units that the store misses, asked for; runs on several threads."""
        assert self.store is not None
        recorder = RecordingTeacher(
            self.teacher,
            self.store,
            example_of=None if self.options.is_run else self._example_key,
        )
        batches = sources.live_states(self.options.config, self.reader, recorder).states(micro_step)
        return recorder.units(
            torch.cat([batch.t_B for batch in batches]),
            torch.cat([batch.num_maskable_B for batch in batches]),
        )

    def _example_key(self, sequence_id: int) -> bytes:
        plan = self.reader.plan
        assert isinstance(plan, SequentialPlan)
        return dataset_key(self.reader.dataset, sequence_id // plan.num_passes)


def _work(
    options: PrecomputeOptions, denoiser: Denoiser, teacher: RemoteTeacher, parallel: Parallel
) -> _Work:
    config = options.config
    micro_batch_size = config.train.micro_batch_size
    size = config.train.global_batch_size or micro_batch_size
    reader = readers.build_reader(
        config, denoiser, parallel, teacher=teacher, global_batch_size=size
    )
    num_steps = readers.count_steps(config, reader)
    if not options.is_run:
        num_sequences = min(len(reader.dataset), options.max_examples or len(reader.dataset))
        plan = SequentialPlan(
            dataset_size=num_sequences,
            global_batch_size=micro_batch_size,
            seed=config.train.seed,
            num_passes=options.num_passes,
        )
        reader = replace(reader, plan=plan)
        num_steps = plan.num_steps
    return _Work(options=options, reader=reader, num_steps=num_steps, teacher=teacher)


def _identity(
    options: PrecomputeOptions, reader: BatchReader, teacher: RemoteTeacher
) -> StoreIdentity:
    config = options.config
    return StoreIdentity(
        teacher=teacher.description,
        targets=teacher.spec,
        sampler=teacher.sampler if config.distill.state_source == "trajectory" else None,
        plan=run_plan(config, reader)
        if options.is_run
        else dataset_plan(config, num_passes=options.num_passes),
    )


def _save_head(output_path: str, teacher: RemoteTeacher) -> None:
    if teacher.spec.encoding == "hidden":
        with StoreFolder(output_path) as folder:
            save_head(folder, teacher.client.head())


def _without_weights(config: Config) -> Denoiser:
    """The facts and the tokenizer of the student, or of the teacher where there is none yet."""
    model = config.model
    paths = (model.model_path, model.config_path, config.distill.teacher_model_path)
    if not any(paths):
        raise config_file.ConfigError(
            "nobody says how the data is tokenized; give --tokenizer_path (a folder with "
            "config.json and the tokenizer) beside --teacher_address"
        )
    model_path, config_path, teacher_model_path = (
        None if path is None else os.path.expanduser(path) for path in paths
    )
    return outline_student(
        StudentSpec(
            model_path=model_path,
            config_path=config_path,
            config_overrides=dict(model.config_overrides),
            teacher_model_path=teacher_model_path,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Precomputes as the arguments say; returns the exit code."""
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        counts = run(options)
    except config_file.ConfigError as error:
        print(f"distill precompute: {error}", file=sys.stderr)
        return train.EXIT_MISUSED
    except train.FAILURES as error:
        logger.debug("failed", exc_info=True)
        print(f"distill precompute: {error}", file=sys.stderr)
        return train.EXIT_FAILED
    print(f"{options.output_path}: {counts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
