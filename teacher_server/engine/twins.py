"""Rows that ask for the same: one of them runs, the others get what it gets."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from teacher_server.engine.sequence import Row


class Twins:
    """Finds rows of the same content in flight (ranks that ask alike, retries). One thread's.

    The first runs and is the leader; its twins hold no state of their own until they part from it,
    because it ended without them or because some of their readers are behind and others are not.
    """

    def __init__(self) -> None:
        self._leaders: dict[Hashable, Row] = {}

    def join(self, row: Row) -> bool:
        """Lets a row that is new follow one of the same content; False where none has just begun.

        A leader that has sent something is too far ahead: the twin would miss it.
        """
        row.content = content_of(row)
        leader = self._leaders.get(row.content)
        if leader is None or leader.num_collected_steps > 0:
            self._leaders[row.content] = row
            return False
        row.leader = leader
        leader.twins.append(row)
        return True

    def leave(self, row: Row) -> None:
        """Takes out a row that ends; the first of its twins goes on where it stood."""
        if row.leader is not None:
            row.leader.twins.remove(row)
            row.leader = None
        elif row.twins:
            self._regroup(row.twins, source=row)
            row.twins = []
        elif self._leaders.get(row.content) is row:
            del self._leaders[row.content]

    def part(self, leader: Row) -> None:
        """Parts the twins whose readers are behind from those whose readers are not."""
        readers = leader.readers
        going = [row for row in readers if row.request.stream.has_room]
        if 0 < len(going) < len(readers):
            stalled = [row for row in readers if row not in going]
            for group in (stalled, going):
                self._regroup(group, source=leader)

    def _regroup(self, rows: Sequence[Row], *, source: Row) -> None:
        first, others = rows[0], list(rows[1:])
        if first is not source:
            first.take_state_of(source)
        first.leader, first.twins = None, others
        for row in others:
            row.leader, row.twins = first, []
        if self._leaders.get(source.content) is source:
            self._leaders[source.content] = first


def content_of(row: Row) -> Hashable:
    """All that a row's targets depend on, but for the revision, which is the engine's own."""
    request = row.request
    return (
        request.kind,
        request.targets,
        request.capture,
        request.sampler,
        row.sequence_id,
        row.seed,
        row.step,
        row.num_steps,
        row.time,
        row.num_forwards,
        row.last_collected_step,
        *(
            None if array is None else array.tobytes()
            for array in (row.positions_M, row.unmask_steps_L)
        ),
        *(_bytes(ids) for ids in (row.x_L, row.frozen_L, row.clean_x_L)),
    )


def _bytes(ids: Tensor | None) -> bytes | None:
    return None if ids is None else ids.numpy().tobytes()
