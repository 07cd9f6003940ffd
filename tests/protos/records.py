"""Records to encode: hypothesis strategies, plain examples, and what makes two records the same."""

from typing import get_args

import hypothesis.extra.numpy as npst
import numpy as np
from hypothesis import strategies as st

from protos import codec

ENCODINGS = ("hidden", "top_k", "logits")
DTYPES: tuple[codec.ValueDtype, ...] = get_args(codec.ValueDtype)
_BITS = {"f32": ("<u4", "<f4"), "f16": ("<u2", "<f2"), "bf16": ("<u2", "<u2")}


def values(dtype: codec.ValueDtype, shape: tuple[int, ...], *, seed: int = 0) -> codec.Values:
    """Values of any bit pattern, NaNs with payloads among them."""
    bits, numbers = _BITS[dtype]
    drawn = np.random.default_rng(seed).integers(0, np.iinfo(bits).max, shape, bits, endpoint=True)
    return codec.Values(dtype=dtype, data=drawn.view(numbers))


def int32(numbers: object) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int32)


def top_k(
    rows: list[list[int]], *, temperatures: tuple[float, ...] = (1.0,), dtype: codec.ValueDtype
) -> codec.TopK:
    """Targets that keep these ids, one list a position; nothing is left for the tails."""
    token_ids = [token_id for row in rows for token_id in row]
    shape = (len(temperatures), len(rows))
    return codec.TopK(
        row_offsets=int32(np.cumsum([0, *map(len, rows)])),
        token_ids=int32(token_ids),
        log_probs=values(dtype, (len(token_ids),)),
        temperatures=np.asarray(temperatures, dtype=np.float32),
        log_normalizers=np.arange(np.prod(shape), dtype=np.float32).reshape(shape),
        tail_log_masses=np.full(shape, -np.inf, dtype=np.float32),
    )


def example(
    encoding: str = "top_k",
    *,
    dtype: codec.ValueDtype = "f16",
    positions: tuple[int, ...] = (1, 4),
    length: int | None = 6,
) -> codec.StepTargets:
    """A small record; one without a state where `length` is None."""
    num_positions = len(positions)
    distribution: codec.Distribution
    if encoding == "hidden":
        distribution = codec.Hidden(values=values(dtype, (num_positions, 3)))
    elif encoding == "logits":
        distribution = codec.Logits(values=values(dtype, (num_positions, 5)))
    else:
        rows = [list(range(row, row + 3)) for row in range(num_positions)]
        distribution = top_k(rows, temperatures=(1.0, 2.0), dtype=dtype)
    ids = int32(range(10, 10 + (length or 6)))
    unmask_steps = np.full(len(ids), -1, dtype=np.int32)
    unmask_steps[:1] = 2
    return codec.StepTargets(
        sequence_id=-7,
        step=3,
        time=0.625,
        revision="0f3a",
        tokenizer_fingerprint="",
        state=None if length is None else ids,
        state_digest=codec.state_digest(ids),
        unmask_steps=None if length is None else unmask_steps,
        num_forwards=4,
        positions=int32(positions),
        distribution=distribution,
    )


_any_int32 = npst.from_dtype(np.dtype("<i4"), min_value=0)


def _bit_patterns(dtype: codec.ValueDtype, shape: tuple[int, ...]) -> st.SearchStrategy:
    bits, numbers = _BITS[dtype]
    return npst.arrays(bits, shape).map(
        lambda array: codec.Values(dtype=dtype, data=array.view(numbers))
    )


@st.composite
def _top_k(draw: st.DrawFn, dtype: codec.ValueDtype, num_positions: int) -> codec.TopK:
    vocab_size = draw(st.integers(1, 9))
    # Up to the whole vocabulary: K >= V keeps every id.
    row = st.sets(st.integers(0, vocab_size - 1), max_size=vocab_size).map(sorted)
    rows = draw(st.lists(row, min_size=num_positions, max_size=num_positions))
    num_kept = sum(map(len, rows))
    temperatures = draw(
        st.lists(st.floats(2**-20, 2**20, width=32), max_size=3)
        | st.just([float(np.finfo(np.float32).smallest_subnormal)])
    )
    shape = (len(temperatures), num_positions)
    nats = npst.arrays("<u4", shape).map(lambda bits: bits.view("<f4"))
    nothing_outside = st.just(np.full(shape, -np.inf, dtype=np.float32))
    return codec.TopK(
        row_offsets=int32(np.cumsum([0, *map(len, rows)])),
        token_ids=int32([token_id for row in rows for token_id in row]),
        log_probs=draw(_bit_patterns(dtype, (num_kept,))),
        temperatures=np.asarray(temperatures, dtype=np.float32),
        log_normalizers=draw(nats),
        tail_log_masses=draw(nats | nothing_outside),
    )


@st.composite
def step_targets(draw: st.DrawFn) -> codec.StepTargets:
    """Any record that the codec's contract allows, of a few positions."""
    dtype = draw(st.sampled_from(DTYPES))
    length = draw(st.integers(1, 9))
    positions = draw(st.sets(st.integers(0, length - 1)).map(sorted))
    num_positions = len(positions)
    step = draw(st.integers(0, 2**31 - 1))
    ids = draw(npst.arrays("<i4", length, elements=_any_int32))
    has_state = draw(st.booleans())
    has_unmask_steps = has_state and draw(st.booleans())
    encoding = draw(st.sampled_from(ENCODINGS))
    distribution: codec.Distribution
    if encoding == "top_k":
        distribution = draw(_top_k(dtype, num_positions))
    else:
        data = draw(_bit_patterns(dtype, (num_positions, draw(st.integers(0, 5)))))
        kind = codec.Hidden if encoding == "hidden" else codec.Logits
        distribution = kind(values=data)
    return codec.StepTargets(
        sequence_id=draw(st.integers(-(2**63), 2**63 - 1)),
        step=step,
        time=draw(st.floats(0, 1)),
        revision=draw(st.text(max_size=70)),
        tokenizer_fingerprint=draw(st.text(max_size=70)),
        state=ids if has_state else None,
        state_digest=codec.state_digest(ids),
        unmask_steps=draw(npst.arrays("<i4", length, elements=st.integers(-1, step - 1)))
        if has_unmask_steps
        else None,
        num_forwards=draw(st.integers(0, 2**31 - 1)),
        positions=int32(positions),
        distribution=distribution,
    )


def content(record: codec.StepTargets) -> dict[str, object]:
    """Everything in a record as plain values that compare, numbers as their bits."""
    found: dict[str, object] = {}

    def add(prefix: str, owner: object) -> None:
        for name in type(owner).__slots__:  # type: ignore[attr-defined]
            value = getattr(owner, name)
            if isinstance(value, np.ndarray):
                value = (value.dtype.str, value.shape, value.tobytes())
            if isinstance(value, codec.Distribution | codec.Values):
                found[f"{prefix}{name}"] = type(value).__name__
                add(f"{prefix}{name}.", value)
            else:
                found[f"{prefix}{name}"] = value

    add("", record)
    return found
