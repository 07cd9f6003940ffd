"""What the front and an engine's process tell each other: small msgpack messages, a tag first."""

import dataclasses
import socket
import struct
from collections.abc import Generator
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from masked_diffusion.samplers import SamplerConfig
from protos import errors
from teacher_server.engine.counters import EngineCounters, EngineLoad
from teacher_server.engine.sequence import Capture, Outcome, Request, Row, TargetSpec
from teacher_server.engine.stream import OutputWindow

_HEADER = struct.Struct("<I")

Message = list[Any]
"""A tag, and what belongs to it."""


def send(connection: socket.socket, message: Message) -> None:
    """Sends one message; one thread at a time."""
    data = msgpack.packb(message)
    connection.sendall(_HEADER.pack(len(data)) + data)


def receive(connection: socket.socket) -> Generator[Message, None, None]:
    """The messages that come, until the other end is gone."""
    # A process that is killed resets the connection where it left something unread.
    try:
        with connection.makefile("rb") as stream:
            while len(header := stream.read(_HEADER.size)) == _HEADER.size:
                (num_bytes,) = _HEADER.unpack(header)
                data = stream.read(num_bytes)
                if len(data) < num_bytes:
                    return
                yield msgpack.unpackb(data)
    except ConnectionResetError:
        return


def encode_request(request: Request) -> dict[str, Any]:
    """A request with its rows, none of which has begun."""
    return {
        "request_id": request.request_id,
        "client_id": request.client_id,
        "kind": request.kind,
        "deadline_s": request.deadline_s,
        "targets": dataclasses.asdict(request.targets),
        "every_n_steps": request.capture.every_n_steps,
        "steps": sorted(request.capture.steps),
        "sampler": None if request.sampler is None else dataclasses.asdict(request.sampler),
        "num_rows": request.num_rows,
        "num_tokens": request.num_tokens,
        "rows": [_encode_row(row) for row in request.rows],
    }


def decode_request(fields: dict[str, Any], stream: OutputWindow) -> Request:
    """What `encode_request` was given, with another stream."""
    rows, every, steps = fields.pop("rows"), fields.pop("every_n_steps"), fields.pop("steps")
    targets, sampler = fields.pop("targets"), fields.pop("sampler")
    request = Request(
        **fields,
        targets=TargetSpec(**targets | {"temperatures": tuple(targets["temperatures"])}),
        capture=Capture(every_n_steps=every, steps=frozenset(steps)),
        sampler=None if sampler is None else SamplerConfig(**sampler),
        stream=stream,
    )
    request.rows = [_decode_row(row, request) for row in rows]
    return request


_ROW_FACTS = (
    "sequence_id",
    "seed",
    "step",
    "num_steps",
    "time",
    "max_positions",
    "num_forwards",
    "last_collected_step",
)
"""Fields of a row that are plain numbers."""


def _encode_row(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _ROW_FACTS} | {
        "x_L": _ids(row.x_L),
        "clean_x_L": None if row.clean_x_L is None else _ids(row.clean_x_L),
        "frozen_L": row.frozen_L.numpy().tobytes(),
        "positions_M": _array(row.positions_M),
        "unmask_steps_L": _array(row.unmask_steps_L),
    }


def _decode_row(fields: dict[str, Any], request: Request) -> Row:
    clean = fields["clean_x_L"]
    return Row(
        request=request,
        x_L=_tensor(fields["x_L"]),
        clean_x_L=None if clean is None else _tensor(clean),
        frozen_L=torch.from_numpy(np.frombuffer(fields["frozen_L"], dtype=bool).copy()),
        positions_M=_int32(fields["positions_M"]),
        unmask_steps_L=_int32(fields["unmask_steps_L"]),
        **{name: fields[name] for name in _ROW_FACTS},
    )


def _ids(ids_L: Tensor) -> bytes:
    # Ids are int32 on the wire already; as int64 they would be twice the bytes.
    return ids_L.to(torch.int32).numpy().tobytes()


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.int32).astype(np.int64))


def _array(values: np.ndarray | None) -> bytes | None:
    return None if values is None else values.astype(np.int32).tobytes()


def _int32(data: bytes | None) -> np.ndarray | None:
    return None if data is None else np.frombuffer(data, dtype=np.int32).copy()


def encode_error(error: errors.TeacherError | None) -> list[Any] | None:
    """An error that ends a stream."""
    if error is None:
        return None
    return [error.reason, str(error), error.field, error.retry_after_s]


def decode_error(fields: list[Any] | None) -> errors.TeacherError | None:
    """What `encode_error` was given."""
    if fields is None:
        return None
    reason, message, field, retry_after_s = fields
    return errors.ERRORS[reason](message, field=field, retry_after_s=retry_after_s)


def encode_progress(
    load: EngineLoad, counters: EngineCounters, num_released_tokens: int
) -> Message:
    """The message that tells how the engine is."""
    return [
        "progress",
        dataclasses.asdict(load),
        dataclasses.asdict(counters),
        num_released_tokens,
    ]


def decode_load(fields: dict[str, Any]) -> EngineLoad:
    """The load of `encode_progress`."""
    return EngineLoad(**fields)


def decode_counters(fields: dict[str, Any]) -> EngineCounters:
    """The counters of `encode_progress`."""
    outcomes = {Outcome(name): count for name, count in fields["outcomes"].items()}
    return EngineCounters(**fields | {"outcomes": outcomes})
