"""The engine's loop: take what is new, form a batch, step it, hand the results back."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from masked_diffusion.families import Denoiser
from protos import errors
from teacher_server import head
from teacher_server.config import EngineConfig
from teacher_server.engine.admission import Load, Pace, late_s, load_of
from teacher_server.engine.batcher import next_batch
from teacher_server.engine.counters import EngineCounters, EngineLoad
from teacher_server.engine.fixed_shapes import fitting
from teacher_server.engine.model_runner import DenoiserLostError, ModelRunner
from teacher_server.engine.queue import AdmissionQueue, bounded_hint_s, check_readers, retry_hint_s
from teacher_server.engine.sequence import Outcome, Request, Row
from teacher_server.engine.step import DenoisingStep, ForwardFailedError
from teacher_server.engine.stream import StreamEnd
from teacher_server.engine.twins import Twins

logger = logging.getLogger(__name__)

_MAX_IDLE_WAIT_S = 0.5


class Engine:
    """Owns the denoiser and every row, in a thread of its own.

    `submit`, `close`, `load` and `drain` may be called from any thread; everything else happens in
    the engine's thread. Every admitted row ends exactly once, through `_end`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: EngineConfig,
        *,
        revision: str,
        on_dead: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._config = config
        self._runner = ModelRunner(
            denoiser,
            max_head_elements=config.max_head_elements,
            max_fixed_tokens=config.max_batch_tokens if config.deterministic else None,
            pad_rows=config.pad_rows,
            compiles=config.compile,
        )
        self.counters = EngineCounters()
        self._step = DenoisingStep(
            self._runner,
            self.counters,
            revision=revision,
            # What is cached was computed at another width than what is computed anew.
            max_cache_bytes=0 if config.deterministic else config.max_cache_bytes,
        )
        self._queue = AdmissionQueue(max_tokens=config.max_queue_tokens)
        self._rows: dict[int, Row] = {}  # by order of arrival
        self._twins = Twins()
        self._open_requests: set[Request] = set()
        """Those whose streams are read; they outlive their rows while the reader is behind."""
        self._served_tokens: dict[str, float] = {}
        self._pace = Pace()
        self._loads: dict[Request, Load] = {}
        self._loads_at_forward = 0
        self._next_row = 0
        self._num_held_for = config.hold_until_rows
        self._idle_wait_s = min(_MAX_IDLE_WAIT_S, config.health_interval_s / 4)
        self._stopping = False
        self._proved_s = float("-inf")
        self._on_dead = on_dead
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def process_ids(self) -> list[int]:
        """None: it is a thread."""
        return []

    def start(self) -> None:
        """Proves the denoiser with a real forward, tests fixed shapes, then starts serving."""
        self._prove()
        # Now and not when they are needed: no request waits for it, no deadline passes.
        self._runner.prove_shapes()
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Admits a request and its rows, or raises the refusal; `close` must follow."""
        check_readers(list(self._open_requests), max_bytes=self._config.max_pending_output_bytes)
        # First what takes no time to find out: of a burst, most is refused here.
        self._queue.check(request, retry_after_s=self._retry_after_s)
        self._refuse_late(request)
        self._queue.submit(request, retry_after_s=self._retry_after_s)
        self._open_requests.add(request)
        self._loads[request] = load_of(request)

    def _refuse_late(self, request: Request) -> None:
        over_s = late_s(
            load_of(request),
            self._admitted_loads(),
            now_s=time.monotonic(),
            tokens_per_s=self._pace.tokens_per_s,
            max_batch_tokens=self._config.max_batch_tokens,
        )
        if over_s > 0:
            raise errors.OverloadedError(
                f"deadlines would be missed by {over_s:.1f} s, of this request or of admitted "
                "ones; retry later, or with a longer deadline",
                retry_after_s=bounded_hint_s(over_s),
            )

    def _admitted_loads(self) -> list[Load]:
        """What is left of each open request, taken once a forward: it changes no faster."""
        if self._loads_at_forward != self.counters.num_forwards:
            self._loads_at_forward = self.counters.num_forwards
            self._loads = {request: load_of(request) for request in list(self._open_requests)}
        return list(self._loads.values())

    def close(self, request: Request) -> None:
        """Tells that nobody reads the request's stream any more; frees the rows that are left."""
        if request not in self._open_requests:
            return  # it was refused, and its rows never came in
        self._open_requests.discard(request)
        self._loads.pop(request, None)
        self._queue.close(request)

    def wake(self) -> None:
        """Tells that a stream has room again."""
        self._queue.wake()

    def drain(self, *, timeout_s: float) -> bool:
        """Refuses new requests and waits for the admitted ones; False when time ran out."""
        self._queue.drain()
        return self._queue.wait_empty(timeout_s=timeout_s)

    def stop(self) -> None:
        """Fails what is left and ends the thread."""
        # Refuse first: what is admitted before that is still seen, and failed, by the thread.
        self._queue.drain()
        self._stopping = True
        self._queue.wake()
        if self._thread.is_alive():
            self._thread.join()

    def load(self) -> EngineLoad:
        """The load at this moment; cheap."""
        rows = list(self._rows.values())
        live = sum(1 for row in rows if (row.leader or row).num_forwards)
        return EngineLoad(
            num_live_rows=live,
            num_waiting_rows=len(rows) - live,
            num_queued_tokens=self._queue.num_tokens,
            backlog_s=self._backlog_s(rows),
            draining=self._queue.draining,
            healthy=self._thread.is_alive()
            and self._proof_age_s() < self._config.health_interval_s,
        )

    def head_chunk(self, index: int) -> bytes | None:
        """A part of the head, None behind the last; see `head.head_chunk`."""
        return head.head_chunk(self._runner.denoiser, index)

    @property
    def num_released_tokens(self) -> int:
        """Tokens of all rows that have ended, since the start."""
        return self._queue.num_released_tokens

    def snapshot(self) -> EngineCounters:
        """A copy of the counters."""
        return dataclasses.replace(self.counters, outcomes=dict(self.counters.outcomes))

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._round()
            self._end_all(errors.DrainingError("the server stopped"))
        except BaseException as error:
            logger.exception("engine died")
            failure = errors.EngineError(f"the engine died: {type(error).__name__}: {error}")
            self._queue.fail(failure)
            self._end_all(failure)
            if self._on_dead is not None:
                self._on_dead(error)

    def _round(self) -> None:
        is_busy = not self._is_held() and any(
            not row.is_ready or any(map(_has_room, row.readers)) for row in self._leading()
        )
        incoming, closed = self._queue.take(timeout_s=0.0 if is_busy else self._idle_wait_s)
        self._admit(incoming)
        self._expire()
        for request in closed:
            self._end_request(request, Outcome.CANCELLED, errors.CancelledError("cancelled"))
        self._seek()
        batch = self._next_batch()
        if batch:
            self._run_step(batch)
        elif self._proof_age_s() > self._config.health_interval_s / 2:
            # Well before the last proof is too old: an idle engine must not look sick in between.
            self._prove()

    def _admit(self, incoming: Iterable[Request]) -> None:
        if incoming:
            self._forget_idle_clients()
        for request in incoming:
            self.counters.num_admitted_rows += request.num_rows
            # A client that comes back starts level with the least served of those at work.
            floor = min(self._served_tokens.values(), default=0.0)
            self._served_tokens.setdefault(request.client_id, floor)
            if not request.rows:
                request.stream.put(StreamEnd(None))
            for row in request.rows:
                row.order = self._next_row
                self._rows[row.order] = row
                self._next_row += 1
                self.counters.num_joined_rows += self._twins.join(row)

    def _leading(self) -> list[Row]:
        """The rows that run: not those that another one runs for."""
        return [row for row in self._rows.values() if row.leader is None]

    def _seek(self) -> None:
        seeking = [row for row in self._leading() if not row.is_ready]
        with self._failing(seeking, "the sampler"):
            for row in self._step.seek(seeking):
                for reader in reversed(row.readers):
                    self._end(reader, Outcome.DONE)

    def _next_batch(self) -> list[Row]:
        if self._is_held():
            return []
        for row in self._leading():
            if row.twins:
                self._twins.part(row)
        ready = [row for row in self._leading() if row.is_ready and _has_room(row)]
        batch = self._choose(ready)
        if batch and self._runner.fixed is not None:
            batch = self._of_one_shape(batch[0], ready)
        return self._fit_output(batch)

    def _choose(self, ready: list[Row]) -> list[Row]:
        return next_batch(
            ready,
            served_tokens=self._served_tokens,
            max_batch_tokens=self._config.max_batch_tokens,
            max_padding_fraction=None
            if self._runner.packs_rows or self._runner.fixed is not None
            else self._config.max_padding_fraction,
        )

    def _of_one_shape(self, first: Row, ready: list[Row]) -> list[Row]:
        """Deterministic mode: the fairest row and those that run in the same shape."""
        if self._step.has_blocks:
            return [first]
        fixed = self._runner.fixed
        assert fixed is not None
        shape = fixed.shape_of(first.length)
        alike = self._choose([row for row in ready if fixed.shape_of(row.length) == shape])
        num_rows = sum(row.forwards_per_step for row in alike)
        return fitting(alike, max_rows=fixed.num_at_once(shape, num_rows))

    def _is_held(self) -> bool:
        """Whether `hold_until_rows` keeps the batcher waiting; ends when so many rows are there."""
        if not self._rows:
            self._num_held_for = self._config.hold_until_rows
        if len(self._rows) >= self._num_held_for:
            self._num_held_for = 0
        return self._num_held_for > 0

    def _fit_output(self, batch: list[Row]) -> list[Row]:
        """Cuts a batch whose targets alone outgrow what all streams may hold: LOGITS can."""
        num_bytes = 0
        for index, row in enumerate(batch):
            num_bytes += row.max_step_bytes
            if index and num_bytes > self._config.max_pending_output_bytes:
                return batch[:index]
        return batch

    def _run_step(self, batch: list[Row]) -> None:
        started_s = time.monotonic()
        num_tokens = sum(row.step_tokens for row in batch)
        for row in batch:
            self._served_tokens[row.request.client_id] += row.step_tokens
        left = [batch]
        while left:
            # A request that failed with one half took its rows in the other along.
            part = [row for row in left.pop() if row.order in self._rows]
            if not part:
                continue
            with self._failing(part, "the step"):
                try:
                    self._step.run(part)
                except ForwardFailedError as error:
                    # One row may be all that is wrong with it, or its size: halves find out.
                    if len({row.request for row in part}) == 1:
                        self._fail(part, f"the forward failed: {error}")
                    else:
                        left += [part[: len(part) // 2], part[len(part) // 2 :]]
                else:
                    self._proved_s = time.monotonic()
        seconds = time.monotonic() - started_s
        self.counters.busy_s += seconds
        # What a small step takes tells nothing of a large one: they may take the same time.
        if num_tokens * 2 >= self._config.max_batch_tokens:
            self._pace.add(num_tokens, seconds)

    @contextlib.contextmanager
    def _failing(self, rows: list[Row], what: str) -> Iterator[None]:
        """Ends the rows' requests where the block raises; the engine and all others go on."""
        try:
            yield
        except DenoiserLostError:
            raise
        except Exception as error:
            self._fail(rows, f"{what} failed: {type(error).__name__}: {error}")

    def _fail(self, rows: Sequence[Row], message: str) -> None:
        """Ends the rows' requests; called where the cause is being handled."""
        logger.exception("failed rows=%d", len(rows))
        for request in {reader.request for row in rows for reader in row.readers}:
            self._end_request(request, Outcome.FAILED, errors.EngineError(message))

    def _expire(self) -> None:
        now_s = time.monotonic()
        expired = {row.request for row in self._rows.values() if row.request.deadline_s <= now_s}
        for request in expired:
            failure = errors.DeadlineError(f"request {request.request_id} was not done in time")
            self._end_request(request, Outcome.EXPIRED, failure)

    def _end_request(self, request: Request, outcome: Outcome, error: errors.TeacherError) -> None:
        for row in list(request.rows):
            self._end(row, outcome, error)

    def _end_all(self, error: errors.TeacherError) -> None:
        incoming, _ = self._queue.take(timeout_s=0.0)
        self._admit(incoming)
        for row in list(self._rows.values()):
            self._end(row, Outcome.FAILED, error)

    def _end(self, row: Row, outcome: Outcome, error: errors.TeacherError | None = None) -> None:
        """The one way out for a row."""
        request = row.request
        del self._rows[row.order]
        self._twins.leave(row)
        request.rows.remove(row)
        self._step.forget(row)
        self.counters.outcomes[outcome] += 1
        request.error = request.error or error
        self._queue.release(row.length)
        if not request.rows:
            request.stream.put(StreamEnd(request.error))

    def _forget_idle_clients(self) -> None:
        active = {row.request.client_id for row in self._rows.values()}
        self._served_tokens = {
            client: served for client, served in self._served_tokens.items() if client in active
        }

    def _prove(self) -> None:
        self._runner.prove()
        self._proved_s = time.monotonic()

    def _proof_age_s(self) -> float:
        return time.monotonic() - self._proved_s

    def _backlog_s(self, rows: list[Row]) -> float:
        speed = self.counters.tokens_per_s
        left = sum(row.num_tokens_left for row in rows if row.leader is None)
        return left / speed if speed else 0.0

    def _retry_after_s(self) -> float:
        return retry_hint_s(self._backlog_s(list(self._rows.values())))


def _has_room(row: Row) -> bool:
    """Whether its own reader keeps up; once twins have parted, those of its twins then do too."""
    return row.request.stream.has_room
