"""What one call did, for its line in the log."""

import logging
import time
from dataclasses import dataclass, field

from protos import teacher_pb2 as pb
from teacher_server.engine.sequence import Request
from teacher_server.refusals import shown

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, eq=False)
class CallRecord:
    """Filled while a call runs, logged once at its end."""

    request_id: str
    client_id: str
    cohort: pb.CohortHint | None = None
    """None where the caller gave no hint."""
    started_s: float = field(default_factory=time.monotonic)
    request: Request | None = None
    """None where the message was refused before it became one."""
    status: str = "failed"
    """"ok", "cancelled", "failed" (a bug), or the reason of the error that was answered."""
    error: str = ""
    num_bytes: int = 0
    """Bytes of targets that the transport took."""

    def log(self) -> None:
        """Writes the line."""
        request, cohort = self.request, self.cohort
        logger.info(
            "request id=%s client=%s kind=%s status=%s rows=%d tokens=%d forwards=%d "
            "positions=%d bytes=%d seconds=%.3f%s%s",
            self.request_id,
            self.client_id,
            request.kind if request else "-",
            self.status,
            request.num_rows if request else 0,
            request.num_tokens if request else 0,
            request.num_forwards if request else 0,
            request.num_target_positions if request else 0,
            self.num_bytes,
            time.monotonic() - self.started_s,
            f" cohort={shown(cohort.run_id)}/{cohort.step}/{cohort.num_requests}" if cohort else "",
            f" error={self.error!r}" if self.error else "",
        )
