"""Admission that looks at sizes alone, as queues of most servers do."""

from teacher_server.engine.engine import Engine
from teacher_server.engine.sequence import Request


class SizeAdmissionEngine(Engine):
    """Admits whatever fits the queue, whether or not it can be done by its deadline."""

    def _refuse_late(self, request: Request) -> None:
        pass
