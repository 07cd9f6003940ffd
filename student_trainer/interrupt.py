"""SIGTERM as a request to save and stop, which the loop looks at between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Set by SIGTERM for as long as the context lasts; a scheduler's notice before it kills."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _set(self, _: int, __: FrameType | None) -> None:
        self.is_set = True
