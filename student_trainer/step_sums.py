"""What a step adds up before it is divided by the global normaliser and put into metrics."""

import dataclasses
import resource
from collections.abc import Mapping
from pathlib import Path

from student_trainer.losses import NUM_TIME_BUCKETS


@dataclasses.dataclass(slots=True)
class StepSums:
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
    num_stop_requests: float = 0.0
    by_time: list[float] = dataclasses.field(default_factory=lambda: [0.0] * (3 * NUM_TIME_BUCKETS))
    """Positions, unweighted cross-entropy and unweighted divergence of each range of t."""

    def to_list(self) -> list[float]:
        """All numbers, in the order of the fields, as ranks add them up."""
        *numbers, by_time = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [*numbers, *by_time]

    @classmethod
    def from_list(cls, values: list[float]) -> "StepSums":
        """The inverse of `to_list`."""
        num_single = len(dataclasses.fields(cls)) - 1
        found = cls(*values[:num_single])  # type: ignore[arg-type]
        found.by_time = values[num_single:]
        return found

    def loss_by_time(self) -> Mapping[str, float]:
        """Mean CE and KD, in nats a position, where t is in ((i - 1) / n, i / n]: ce_t0.25, ...

        Ranges without a position are left out.
        """
        found: dict[str, float] = {}
        for index in range(NUM_TIME_BUCKETS):
            count, ce, kd = self.by_time[index::NUM_TIME_BUCKETS]
            upper = (index + 1) / NUM_TIME_BUCKETS
            if count:
                found |= {f"ce_t{upper:g}": ce / count, f"kd_t{upper:g}": kd / count}
        return found


def peak_rss_mib() -> float:
    """Peak resident memory of this process so far."""
    if not Path("/proc/self/status").exists():
        # macOS reports bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Not ru_maxrss: it survives exec, so a rank that a large process started would report that.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024
