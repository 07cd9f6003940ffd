"""The loop: take the states of a step, normalise globally, forward and backward, step."""

import dataclasses
import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer import losses
from student_trainer.checkpoint import load_checkpoint, save_checkpoint
from student_trainer.config import Config
from student_trainer.metrics import MetricsLog, StepMetrics
from student_trainer.objective import DistillationObjective
from student_trainer.optimizer import learning_rate, new_optimizer
from student_trainer.parallel import Parallel
from student_trainer.states import StateBatch
from student_trainer.targets import TargetCounters

logger = logging.getLogger(__name__)

# Two equal models differ by rounding: 1e-7 nats a token where targets are float32, up to 1e-3 where
# they are bfloat16. A teacher worth asking differs by 1e-2 and more.
_ZERO_KD_NATS = 1e-6
_ROUNDING_KD_NATS = 1e-3


@dataclasses.dataclass(slots=True)
class _Sums:
    """One rank's sums over the batches of a step."""

    loss: float = 0.0
    ce: float = 0.0
    kd: float = 0.0
    normalizer: float = 0.0
    num_masked: float = 0.0
    num_tokens: float = 0.0
    wait_s: float = 0.0
    num_retries: float = 0.0
    num_target_bytes: float = 0.0


class Trainer:
    """Trains a student on states that arrive; knows nothing of where they come from."""

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        parallel: Parallel,
        *,
        num_steps: int,
        facts: Mapping[str, int | str] | None = None,
    ) -> None:
        """Restores the checkpoint that the configuration names, if it does.

        Args:
            facts: what a resumed run must share with the one it goes on from.

        Raises:
            ValueError: there is no such checkpoint, or it is of another run.
        """
        self._config = config
        self._denoiser = denoiser
        self._parallel = parallel
        self._num_steps = num_steps
        self._facts = dict(facts or {})
        self._objective = DistillationObjective(
            denoiser, config.loss, mixed_precision=config.train.enable_mixed_precision
        )
        self._module: nn.Module = parallel.wrap(self._objective)
        self._optimizer = new_optimizer(self._objective, config.train)
        self._started_s = 0.0
        self.first_step = 0
        """Steps done before this process: those of the checkpoint it went on from."""
        if config.train.load_checkpoint_path is not None:
            folder = Path(config.train.load_checkpoint_path)
            self.first_step = load_checkpoint(
                folder, self._objective, self._optimizer, facts=self._facts
            )
            if self.first_step >= num_steps:
                raise ValueError(
                    f"train.load_checkpoint_path {str(folder)!r} has {self.first_step} steps done, "
                    f"train.max_steps is {num_steps}; raise train.max_steps"
                )

    def train(
        self,
        arriving: Iterator[list[StateBatch]],
        *,
        num_micro_steps: int,
        counters: Callable[[], TargetCounters],
        log: MetricsLog | None,
    ) -> None:
        """Runs the steps that are left.

        Args:
            arriving: the states of each micro-step, in order.
            num_micro_steps: accumulation steps of one optimizer step.
            counters: what the teacher's client did so far.
            log: on the main rank; None elsewhere.
        """
        self._started_s = time.monotonic()
        self._denoiser.train()
        for step in range(self.first_step, self._num_steps):
            metrics = self._step(step, arriving, num_micro_steps, counters)
            if log is not None:
                log.add(metrics)
            self._save(step + 1)

    def export(self) -> Path:
        """Writes the student as a Hugging Face folder that a teacher-server can serve."""
        folder = Path(self._config.train.output_dir) / "hf_ckpt"
        if self._parallel.is_main:
            checkpoints.save_denoiser(self._denoiser, folder)
        return folder

    def _step(
        self,
        step: int,
        arriving: Iterator[list[StateBatch]],
        num_micro_steps: int,
        counters: Callable[[], TargetCounters],
    ) -> StepMetrics:
        step_started_s = time.monotonic()
        sums = _Sums()
        previous: StateBatch | None = None
        # One batch behind what arrived, since the last backward of a step is special. No more are
        # held: a step may have many, and their targets are large.
        for batch in _batches(arriving, num_micro_steps, sums):
            if previous is not None:
                self._backward(previous, sums, is_last=False)
            previous = batch
        assert previous is not None
        self._backward(previous, sums, is_last=True)
        self._normalize(sums)
        grad_norm = self._update(step)
        so_far = counters()
        sums.num_retries, sums.num_target_bytes = so_far.num_retries, so_far.num_bytes
        return self._metrics(step, sums, grad_norm, step_started_s)

    def _backward(self, batch: StateBatch, sums: _Sums, *, is_last: bool) -> None:
        """Adds a batch's gradients and sums, not normalised yet: the count is known at the end."""
        with self._parallel.accumulate(self._module, is_last=is_last):
            result = self._module(batch, 1.0)
            result.total.backward()
        sums.loss += float(result.total.detach())
        sums.ce += result.ce
        sums.kd += result.kd
        sums.num_masked += batch.num_masked
        sums.num_tokens += int(batch.lengths_B.sum())
        sums.normalizer += losses.normalizer_count(
            self._config.loss,
            num_masked=batch.num_masked,
            num_tokens=int(batch.num_maskable_B.sum()),
            num_sequences=len(batch.lengths_B),
        )

    def _normalize(self, sums: _Sums) -> None:
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
        norm = torch.nn.utils.clip_grad_norm_(self._objective.parameters(), max_norm)
        if not torch.isfinite(norm):
            # The same on all ranks, so all stop here, before the weights are spoiled.
            raise ValueError(
                f"the gradient norm of step {step + 1} is {float(norm)}; lower train.lr, raise "
                "train.lr_warmup_ratio, or check the data and the teacher's values"
            )
        rate = learning_rate(step, num_steps=self._num_steps, config=self._config.train)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _metrics(
        self, step: int, sums: _Sums, grad_norm: float, step_started_s: float
    ) -> StepMetrics:
        total = _Sums(*self._parallel.sum(list(dataclasses.astuple(sums))))
        if step == self.first_step and self._config.uses_teacher:
            self._check_teacher_differs(total)
        now_s = time.monotonic()
        return StepMetrics(
            step=step + 1,
            loss=total.loss,
            ce=total.ce,
            kd=total.kd,
            grad_norm=grad_norm,
            lr=self._optimizer.param_groups[0]["lr"],
            num_masked=int(total.num_masked),
            num_tokens=int(total.num_tokens),
            step_s=now_s - step_started_s,
            teacher_wait_s=total.wait_s / self._parallel.world_size,
            num_target_bytes=int(total.num_target_bytes),
            num_retries=int(total.num_retries),
            peak_rss_mib=self._parallel.maximum(_peak_rss_mib()),
            elapsed_s=now_s - self._started_s,
        )

    def _check_teacher_differs(self, total: _Sums) -> None:
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

    def _save(self, num_done: int) -> None:
        config = self._config.train
        if config.ckpt_manager == "none" or not config.save_steps:
            return
        if num_done % config.save_steps == 0 or num_done == self._num_steps:
            folder = Path(config.output_dir) / "checkpoints" / f"step-{num_done}"
            save_checkpoint(
                folder,
                self._objective,
                self._optimizer,
                step=num_done,
                parallel=self._parallel,
                facts=self._facts,
            )


def _batches(
    arriving: Iterator[list[StateBatch]], num_micro_steps: int, sums: _Sums
) -> Iterator[StateBatch]:
    """All batches of one optimizer step; the time spent waiting for them is added to the sums."""
    for _ in range(num_micro_steps):
        started_s = time.monotonic()
        batches = next(arriving)
        sums.wait_s += time.monotonic() - started_s
        yield from batches


def _peak_rss_mib() -> float:
    if not Path("/proc/self/status").exists():
        # macOS reports bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Not ru_maxrss: it survives exec, so a rank that a large process started would report that.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024
