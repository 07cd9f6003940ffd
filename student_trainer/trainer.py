"""The loop: take the states of a step, normalise globally, forward and backward, step."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer import lora
from student_trainer.blocks import prepare_blocks
from student_trainer.checkpoint import (
    CONFIG_FILE,
    DataPosition,
    TrainingState,
    find_checkpoint,
    load_checkpoint,
    put_back_replaced,
)
from student_trainer.checkpoint_writer import CheckpointWriter
from student_trainer.config import Config
from student_trainer.ema import WeightAverage
from student_trainer.full_weights import full_weights
from student_trainer.interrupt import StopRequest
from student_trainer.lockstep import pad_batches
from student_trainer.metrics import MetricsLog, StepMetrics
from student_trainer.objective import DistillationObjective
from student_trainer.optimizer import learning_rate, new_optimizers
from student_trainer.parallel import Parallel
from student_trainer.run_facts import Facts, config_changes, config_facts
from student_trainer.sharding import distribute
from student_trainer.states import StateBatch
from student_trainer.step_sums import StepSums, peak_rss_mib
from student_trainer.targets import TargetCounters
from student_trainer.teacher_head import ShardedTeacherHead

logger = logging.getLogger(__name__)

# Two equal models differ by rounding: 1e-7 nats a token where targets are float32, up to 1e-3 where
# they are bfloat16. A teacher worth asking differs by 1e-2 and more.
_ZERO_KD_NATS = 1e-6
_ROUNDING_KD_NATS = 1e-3


class Trainer:
    """Trains a student on states that arrive; knows nothing of where they come from."""

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        parallel: Parallel,
        *,
        num_steps: int,
        facts: Facts | None = None,
        config_text: str = "",
        teacher_head: ShardedTeacherHead | None = None,
        data: DataPosition | None = None,
    ) -> None:
        """Restores the checkpoint that the configuration names, if it does.

        Args:
            facts: what a resumed run must share with the one it goes on from, beside what the
                configuration says.
            config_text: kept with every checkpoint.
            teacher_head: made whole for each step, where ranks share it.
            data: a stream of data, which goes on with the run.

        Raises:
            ValueError: there is no such checkpoint, it is of another run, or an option asks for
                what cannot be done here.
        """
        self._config = config
        self._denoiser = denoiser
        self._parallel = parallel
        self._num_steps = num_steps
        self._teacher_head = teacher_head
        train = config.train
        lora.add_adapters(denoiser, train)
        prepare_blocks(denoiser, train)
        self._objective = DistillationObjective(
            denoiser,
            config.loss,
            mixed_precision=train.enable_mixed_precision,
            device=parallel.device,
            packed_row_tokens=config.data.max_seq_len if config.data.packing else None,
        )
        self._laid_out = distribute(
            self._objective, parallel, train, mixed_precision=train.enable_mixed_precision
        )
        self._optimizers = new_optimizers(self._objective, train, blocks=denoiser.blocks)
        self._average = (
            WeightAverage(self._objective, decay=train.ema_decay) if train.ema_decay else None
        )
        self._state = TrainingState(
            module=self._objective,
            optimizers=self._optimizers,
            average=self._average,
            data=data,
        )
        self._started_s = 0.0
        folder = Path(train.output_dir) / "checkpoints"
        facts = {**(facts or {}), **config_facts(config)}
        self.first_step = self._resume(folder, facts, config_text)
        """Steps done before this process: those of the checkpoint it went on from."""
        self._writer = None
        if train.ckpt_manager != "none":
            self._writer = CheckpointWriter(
                folder,
                parallel,
                facts=facts,
                config_text=config_text,
                keep_last=train.keep_last_checkpoints,
                is_async=train.enable_async_save,
            )

    def train(
        self,
        arriving: Iterator[list[StateBatch]],
        *,
        num_micro_steps: int,
        counters: Callable[[], TargetCounters],
        log: MetricsLog | None,
        request: StopRequest,
    ) -> bool:
        """Runs the steps that are left, or those until a request to stop; what was done is saved.

        Args:
            arriving: the states of each micro-step, in order.
            num_micro_steps: accumulation steps of one optimizer step.
            counters: what the teacher's client did so far.
            log: on the main rank; None elsewhere.
            request: looked at after each step. It is the caller's, since signals come in twos
                (the scheduler's and torchrun's): its context must outlast this call, which
                returns when the last checkpoint is on the disk, and the export.

        Returns:
            Whether all steps are done.
        """
        self._started_s = time.monotonic()
        self._denoiser.train()
        with self._writer or contextlib.nullcontext():
            for step in range(self.first_step, self._num_steps):
                sums = StepSums()
                started_s = time.monotonic()
                grad_norm = self._step(step, self._batches(arriving, num_micro_steps, sums), sums)
                so_far = counters()
                sums.num_retries, sums.num_target_bytes = so_far.num_retries, so_far.num_bytes
                sums.num_stop_requests = float(request.is_set)
                total = StepSums.from_list(self._parallel.sum(sums.to_list()))
                metrics = self._metrics(step, total, grad_norm, started_s)
                if log is not None:
                    log.add(metrics)
                # Ranks get the signal at different moments; they stop after the same step.
                is_stopping = total.num_stop_requests > 0
                self._save(step + 1, is_stopping=is_stopping)
                if is_stopping and step + 1 < self._num_steps:
                    logger.info("stopped by SIGTERM step=%d", step + 1)
                    return False
        return True

    def export(self) -> Path:
        """Writes the student as a Hugging Face folder that a teacher-server can serve.

        All ranks take part: what they hold is gathered on the main one.
        """
        folder = Path(self._config.train.output_dir) / "hf_ckpt"
        use_average = self._average is not None and self._config.train.export_weights == "ema"
        with contextlib.ExitStack() as stack:
            if use_average:
                assert self._average is not None
                stack.enter_context(self._average.swapped())
            # Written before the weights come back: on the CPU these are the parameters themselves.
            weights = full_weights(self._denoiser, is_kept=self._parallel.is_main)
            if self._parallel.is_main:
                checkpoints.save_denoiser(self._denoiser, folder, weights=weights)
        return folder

    def _resume(self, folder: Path, facts: Facts, config_text: str) -> int:
        path = self._config.train.load_checkpoint_path
        if self._parallel.is_main:
            put_back_replaced(folder)
        # One rank looks, since another may see a checkpoint that is just being removed.
        (found, *_) = self._parallel.gather(find_checkpoint(path, folder) if path else None)
        if found is None:
            return 0
        num_done = load_checkpoint(found, self._state, facts=facts)
        if num_done >= self._num_steps:
            raise ValueError(
                f"train.load_checkpoint_path {str(found)!r} has {num_done} steps done, "
                f"train.max_steps is {self._num_steps}; raise train.max_steps"
            )
        saved_config = found / CONFIG_FILE
        changes = (
            config_changes(saved_config.read_text(encoding="utf-8"), config_text)
            if saved_config.exists()
            else []
        )
        logger.info(
            "resumed checkpoint=%s step=%d changes=[%s]", found, num_done, ", ".join(changes)
        )
        return num_done

    def _step(
        self, step: int, batches: Iterator[tuple[StateBatch, StepSums]], sums: StepSums
    ) -> float:
        """One optimizer step; returns the gradient norm before clipping."""
        _seed_generators(self._config.train.seed, step=step, rank=self._parallel.rank)
        gathered = (
            contextlib.nullcontext if self._teacher_head is None else self._teacher_head.gathered
        )
        with gathered():
            # One batch behind what arrived, since the last backward of a step is special. No more
            # are held: a step may have many, and their targets are large.
            previous = next(batches)
            for arrived in batches:
                self._backward(*previous, is_last=False)
                previous = arrived
            self._backward(*previous, is_last=True)
            del previous
        self._normalize(sums)
        return self._update(step)

    def _batches(
        self, arriving: Iterator[list[StateBatch]], num_micro_steps: int, sums: StepSums
    ) -> Iterator[tuple[StateBatch, StepSums]]:
        """All batches of a step, each with the sums it is added to; the wait is added too."""
        for _ in range(num_micro_steps):
            started_s = time.monotonic()
            batches = next(arriving)
            sums.wait_s += time.monotonic() - started_s
            num_own = len(batches)
            if self._laid_out.is_sharded:
                batches = pad_batches(batches, self._parallel)
            for index, batch in enumerate(batches):
                # What was added for the other ranks' sake counts nowhere.
                yield batch, sums if index < num_own else StepSums()

    def _backward(self, batch: StateBatch, sums: StepSums, *, is_last: bool) -> None:
        """Adds a batch's gradients and sums, not normalised yet: the count is known at the end."""
        with self._laid_out.accumulate(is_last=is_last):
            result = self._laid_out.module(batch, 1.0)
            result.total.backward()
        sums.loss += float(result.total.detach())
        sums.ce += result.ce
        sums.kd += result.kd
        sums.by_time = [a + b for a, b in zip(sums.by_time, result.by_time, strict=True)]
        sums.num_masked += batch.num_masked
        sums.num_tokens += int(batch.lengths_B.sum())
        sums.normalizer += self._objective.normalizer_share(batch)

    def _normalize(self, sums: StepSums) -> None:
        """Divides gradients and losses by the count over all ranks and accumulation steps."""
        # A step without a single masked position has a zero loss, not 0 / 0.
        normalizer = max(self._parallel.sum([sums.normalizer])[0], 1.0)
        for parameter in self._objective.parameters():
            if parameter.grad is not None:
                # Data parallelism averaged over ranks, and we want their sum.
                parameter.grad.mul_(self._parallel.world_size / normalizer)
        sums.loss /= normalizer
        sums.ce /= normalizer
        sums.kd /= normalizer

    def _update(self, step: int) -> float:
        max_norm = self._config.train.max_grad_norm or float("inf")
        norm = _whole(torch.nn.utils.clip_grad_norm_(self._objective.parameters(), max_norm))
        if not torch.isfinite(norm):
            # The same on all ranks, so all stop here, before the weights are spoiled.
            raise ValueError(
                f"the gradient norm of step {step + 1} is {float(norm)}; lower train.lr, raise "
                "train.lr_warmup_ratio, or check the data and the teacher's values"
            )
        rate = learning_rate(step, num_steps=self._num_steps, config=self._config.train)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update()
        return float(norm)

    def _metrics(
        self, step: int, total: StepSums, grad_norm: float, step_started_s: float
    ) -> StepMetrics:
        if step == self.first_step and self._config.uses_teacher:
            self._check_teacher_differs(total)
        now_s = time.monotonic()
        return StepMetrics(
            step=step + 1,
            loss=total.loss,
            ce=total.ce,
            kd=total.kd,
            grad_norm=grad_norm,
            lr=self._optimizers[0].param_groups[0]["lr"],
            num_masked=int(total.num_masked),
            num_tokens=int(total.num_tokens),
            step_s=now_s - step_started_s,
            teacher_wait_s=total.wait_s / self._parallel.world_size,
            num_target_bytes=int(total.num_target_bytes),
            num_retries=int(total.num_retries),
            peak_rss_mib=self._parallel.maximum(peak_rss_mib()),
            elapsed_s=now_s - self._started_s,
            loss_by_time=total.loss_by_time(),
        )

    def _check_teacher_differs(self, total: StepSums) -> None:
        """A deep copy that sees the teacher's own states has nothing to learn from it."""
        if not total.num_masked or total.kd > _ROUNDING_KD_NATS:
            return
        message = (
            f"the distillation loss is zero ({total.kd:.1e} nats): the student is a copy of the "
            "teacher and sees the same states, so the teacher teaches nothing. Use a smaller "
            "student (model.config_overrides) or other weights (model.model_path, "
            "distill.init_student_from_teacher=false)"
        )
        # Above pure float32 rounding it may also be a student that has nearly converged.
        if self._config.distill.distillation_alpha == 1.0 and total.kd <= _ZERO_KD_NATS:
            raise ValueError(message)
        if self._parallel.is_main:
            logger.warning("%s; with this run only the cross-entropy trains", message)

    def _save(self, num_done: int, *, is_stopping: bool) -> None:
        if self._writer is None:
            return
        # A disk that is full is told now, not when the next one is due.
        self._writer.check()
        every = self._config.train.save_steps
        is_due = every and (num_done % every == 0 or num_done == self._num_steps)
        if is_due or is_stopping:
            self._writer.save(self._state.to_dict(num_done), step=num_done)


def _seed_generators(seed: int, *, step: int, rank: int) -> None:
    """Makes what torch draws (dropout) a function of the step, so a checkpoint holds no state."""
    key = np.random.SeedSequence(entropy=seed, spawn_key=(step, rank))
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))


def _whole(norm: Tensor) -> Tensor:
    """The norm over all shards."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
