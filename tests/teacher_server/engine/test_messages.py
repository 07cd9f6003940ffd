import dataclasses
import socket

import numpy as np
import torch

from masked_diffusion.samplers import SamplerConfig
from protos import errors
from teacher_server.engine import messages
from teacher_server.engine.counters import EngineCounters, EngineLoad
from teacher_server.engine.sequence import Capture, Outcome, Request, Row, TargetSpec
from teacher_server.engine.stream import OutputWindow
from teacher_server.engine.twins import content_of


def _window() -> OutputWindow:
    return OutputWindow(window_bytes=10, on_room=lambda: None)


def _request(**row_fields: object) -> Request:
    request = Request(
        request_id="r",
        client_id="c",
        kind="trajectory",
        deadline_s=12.5,
        targets=TargetSpec(encoding="top_k", dtype="f16", top_k=3, temperatures=(1.0, 2.0)),
        capture=Capture(every_n_steps=2, steps=frozenset({1, 5})),
        sampler=SamplerConfig(algorithm="p2", num_steps=7, temperature=0.5),
        stream=_window(),
        num_rows=1,
        num_tokens=4,
    )
    row = Row(
        request=request,
        sequence_id=9,
        seed=2**63 + 1,
        x_L=torch.tensor([1, 2, 3, 4]),
        frozen_L=torch.tensor([True, False, False, True]),
        num_steps=7,
        **row_fields,  # type: ignore[arg-type]
    )
    request.rows.append(row)
    return request


def _sent(message: messages.Message) -> messages.Message:
    """The message after a real socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        messages.send(ours, message)
        return next(messages.receive(theirs))


def test_a_request_arrives_as_the_same_content() -> None:
    full = _request(
        clean_x_L=torch.tensor([4, 3, 2, 1]),
        time=0.25,
        step=3,
        positions_M=np.array([1, 2], dtype=np.int32),
        unmask_steps_L=np.array([-1, 0, 1, -1], dtype=np.int32),
        num_forwards=3,
        last_collected_step=2,
        max_positions=2,
    )
    for request in (full, _request()):
        _, fields = _sent(["request", messages.encode_request(request)])
        arrived = messages.decode_request(fields, _window())
        # The content is all that a row's targets depend on.
        assert content_of(arrived.rows[0]) == content_of(request.rows[0])
        assert arrived.rows[0].max_positions == request.rows[0].max_positions
        for name in ("request_id", "client_id", "deadline_s", "num_rows", "num_tokens"):
            assert getattr(arrived, name) == getattr(request, name)


def test_errors_arrive_as_their_class_with_field_and_hint() -> None:
    for kind in errors.ERRORS.values():
        error = kind("what is wrong", field="field", retry_after_s=0.5)
        (fields,) = _sent([messages.encode_error(error)])
        arrived = messages.decode_error(fields)
        assert type(arrived) is kind
        assert (str(arrived), arrived.field, arrived.retry_after_s) == (
            "what is wrong",
            "field",
            0.5,
        )
    assert messages.decode_error(messages.encode_error(None)) is None


def test_load_and_counters_arrive_whole() -> None:
    counters = EngineCounters(num_forwards=3, busy_s=1.5)
    counters.outcomes[Outcome.DONE] = 2
    load = EngineLoad(
        num_live_rows=1,
        num_waiting_rows=2,
        num_queued_tokens=3,
        backlog_s=0.5,
        draining=False,
        healthy=True,
    )
    _, load_fields, counter_fields, released = _sent(messages.encode_progress(load, counters, 4))
    assert messages.decode_load(load_fields) == load
    assert dataclasses.asdict(messages.decode_counters(counter_fields)) == dataclasses.asdict(
        counters
    )
    assert released == 4


def test_a_connection_cut_within_a_message_ends_quietly() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        messages.send(ours, ["whole"])
        ours.sendall(b"\x09\x00\x00\x00ha")
        ours.close()
        assert list(messages.receive(theirs)) == [["whole"]]
