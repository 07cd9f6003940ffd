import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masked_diffusion.families import EXCLUDED_LOGIT
from protos import codec
from teacher_server.engine import encoder, top_k, values

MASK_ID = 4
VOCAB_SIZE = 23
SUPPORT = VOCAB_SIZE - 1
TEMPERATURES = (1.0, 0.5, 2.0, 7.5)
# Half a unit in the last place of numbers between 0.5 and 1, by number of significant bits.
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


def _logits(num_rows: int, *, seed: int = 0, scale: float = 3.0) -> Tensor:
    """[M, V] float32 with the mask id excluded."""
    generator = torch.Generator().manual_seed(seed)
    logits_MV = scale * torch.randn(num_rows, VOCAB_SIZE, generator=generator)
    logits_MV[:, MASK_ID] = EXCLUDED_LOGIT
    return logits_MV


def _log_softmax(logits_MV: np.ndarray) -> np.ndarray:
    """In float64; -inf where excluded."""
    logits_MV = np.where(logits_MV <= EXCLUDED_LOGIT / 2, -np.inf, logits_MV.astype(np.float64))
    return logits_MV - np.logaddexp.reduce(logits_MV, axis=-1, keepdims=True)


def _encode(logits_MV: Tensor, **changes: object) -> codec.TopK:
    fields = {"top_k": 5, "top_p": 1.0, "temperatures": TEMPERATURES, "dtype": "f32"}
    return top_k.encode_top_k(logits_MV, **(fields | changes))  # type: ignore[arg-type]


def _rows(distribution: codec.TopK) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per position the ids kept and their log-probabilities."""
    offsets = distribution.row_offsets[1:-1]
    ids = np.split(distribution.token_ids, offsets)
    log_probs = np.split(distribution.log_probs.to_float32(), offsets)
    return list(zip(ids, log_probs, strict=True))


def _assert_same(left: codec.Distribution, right: codec.Distribution) -> None:
    if isinstance(left, codec.TopK):
        assert isinstance(right, codec.TopK)
        names = ("row_offsets", "token_ids", "temperatures", "log_normalizers", "tail_log_masses")
        for name in names:
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        np.testing.assert_array_equal(left.log_probs.data, right.log_probs.data)
    else:
        assert isinstance(right, type(left))
        np.testing.assert_array_equal(left.values.data, right.values.data)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_hidden_states_are_rounded_once_to_the_wire_format(dtype: codec.ValueDtype) -> None:
    hidden_MD = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    values = encoder.encode_hidden(hidden_MD, dtype=dtype).values
    assert values.dtype == dtype
    exact = hidden_MD.double().numpy()
    error = np.abs(values.to_float32() - exact)
    assert (error <= ROUNDING[dtype] * 2 * np.abs(exact)).all()
    if dtype == "f32":
        np.testing.assert_array_equal(values.to_float32(), hidden_MD.numpy())


def test_hidden_states_of_a_bf16_denoiser_travel_unchanged() -> None:
    hidden_MD = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    values = encoder.encode_hidden(hidden_MD, dtype="bf16").values
    np.testing.assert_array_equal(values.to_float32(), hidden_MD.float().numpy())


@pytest.mark.parametrize(("dtype", "atol"), [("f32", 1e-5), ("f16", 2**-6)])
def test_logits_are_the_log_probabilities_without_the_mask_id(
    dtype: codec.ValueDtype, atol: float
) -> None:
    assert dtype != "bf16"
    logits_MV = _logits(7)
    values = encoder.encode_logits(logits_MV, dtype=dtype).values
    exact = _log_softmax(logits_MV.numpy())
    decoded = values.to_float32()
    assert np.isneginf(decoded[:, MASK_ID]).all()
    ordinary = np.arange(VOCAB_SIZE) != MASK_ID
    # float16: half its spacing of 2**-6 between 16 and 32, where the smallest ones lie.
    np.testing.assert_allclose(decoded[:, ordinary], exact[:, ordinary], atol=atol, rtol=0)
    np.testing.assert_allclose(np.exp(exact).sum(-1), 1)


@pytest.mark.parametrize("top_k", [1, 5, SUPPORT - 1])
def test_top_k_keeps_the_most_probable_ids_with_their_log_probabilities(top_k: int) -> None:
    logits_MV = _logits(9)
    exact = _log_softmax(logits_MV.numpy())
    for row, (ids, log_probs) in enumerate(_rows(_encode(logits_MV, top_k=top_k))):
        np.testing.assert_array_equal(ids, np.sort(np.argsort(-exact[row])[:top_k]))
        np.testing.assert_allclose(log_probs, exact[row, ids], atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 5, SUPPORT - 1])
def test_tails_and_normalizers_are_those_of_the_full_row(top_k: int) -> None:
    logits_MV = _logits(9)
    distribution = _encode(logits_MV, top_k=top_k)
    exact = _log_softmax(logits_MV.numpy())
    np.testing.assert_array_equal(
        distribution.temperatures, np.array(TEMPERATURES, dtype=np.float32)
    )
    for index, temperature in enumerate(TEMPERATURES):
        normalizers = np.logaddexp.reduce(exact / temperature, axis=-1)
        np.testing.assert_allclose(distribution.log_normalizers[index], normalizers, atol=1e-5)
        for row, (ids, log_probs) in enumerate(_rows(distribution)):
            rest = np.delete(exact[row] / temperature, ids)
            tail = np.logaddexp.reduce(rest) - normalizers[row]
            # Relative: a sharp temperature leaves tails of -100 nats and less.
            np.testing.assert_allclose(
                distribution.tail_log_masses[index, row], tail, rtol=1e-5, atol=1e-5
            )
            kept = np.exp(log_probs / temperature - distribution.log_normalizers[index, row])
            assert kept.sum() + np.exp(tail) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("top_k", [SUPPORT, VOCAB_SIZE, 10 * VOCAB_SIZE])
@pytest.mark.parametrize("scale", [3.0, 60.0])
def test_a_top_k_that_covers_the_support_leaves_no_tail(top_k: int, scale: float) -> None:
    # At scale 60 one id has all the mass that float32 can tell from 1.
    distribution = _encode(_logits(9, scale=scale), top_k=top_k)
    for ids, _ in _rows(distribution):
        np.testing.assert_array_equal(ids, np.delete(np.arange(VOCAB_SIZE), MASK_ID))
    assert np.isneginf(distribution.tail_log_masses).all()
    assert np.isfinite(distribution.log_normalizers).all()


@given(top_p=st.floats(0.01, 0.99), seed=st.integers(0, 50))
def test_top_p_keeps_the_id_that_crosses_the_mass_and_none_behind_it(
    top_p: float, seed: int
) -> None:
    logits_MV = _logits(3, seed=seed)
    exact = _log_softmax(logits_MV.numpy())
    for row, (ids, _) in enumerate(_rows(_encode(logits_MV, top_k=SUPPORT, top_p=top_p))):
        order = np.argsort(-exact[row])
        mass = np.exp(exact[row, order]).cumsum()
        if np.abs(mass - top_p).min() < 1e-5:
            continue  # float32 may fall on either side
        num_kept = int((mass < top_p).sum()) + 1
        np.testing.assert_array_equal(ids, np.sort(order[:num_kept]))


def test_rows_are_ragged_where_the_mass_is_reached_early() -> None:
    logits_MV = _logits(2, scale=0.5)
    logits_MV[0, 7] = 50.0
    distribution = _encode(logits_MV, top_k=8, top_p=0.9)
    (first, _), (second, _) = _rows(distribution)
    np.testing.assert_array_equal(first, [7])
    assert len(second) == 8
    assert distribution.row_offsets.tolist() == [0, 1, 1 + len(second)]


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e4, 1e30])
def test_no_temperature_lets_the_mask_id_in_or_makes_a_nan(temperature: float) -> None:
    logits_MV = _logits(4)
    distribution = _encode(logits_MV, top_k=5, temperatures=(temperature,))
    exact = _log_softmax(logits_MV.numpy()) / temperature
    normalizers = np.logaddexp.reduce(exact, axis=-1)
    np.testing.assert_allclose(distribution.log_normalizers[0], normalizers, rtol=1e-5)
    assert not np.isnan(distribution.tail_log_masses).any()
    assert MASK_ID not in distribution.token_ids


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_chunks_joined_equal_the_whole(sizes: list[int]) -> None:
    logits_MV = _logits(sum(sizes))
    chunks = logits_MV.split(sizes)
    _assert_same(
        encoder.concatenate([_encode(chunk, top_p=0.8) for chunk in chunks]),
        _encode(logits_MV, top_p=0.8),
    )
    _assert_same(
        encoder.concatenate([encoder.encode_logits(chunk, dtype="f32") for chunk in chunks]),
        encoder.encode_logits(logits_MV, dtype="f32"),
    )


def test_no_positions_make_an_empty_record() -> None:
    distribution = _encode(_logits(0))
    assert distribution.row_offsets.tolist() == [0]
    assert len(distribution.token_ids) == 0
    assert distribution.log_normalizers.shape == (len(TEMPERATURES), 0)


@pytest.mark.parametrize(("name", "dtype"), values.TORCH_DTYPES.items())
def test_a_dtype_has_its_wire_name(name: codec.ValueDtype, dtype: torch.dtype) -> None:
    assert values.dtype_name(dtype) == name


def test_a_dtype_that_targets_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.float64.*--dtype float32"):
        values.dtype_name(torch.float64)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_a_large_vocabulary_is_encoded_like_a_small_one_and_left_as_it_was(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_MV = 3 * torch.randn(4, 3001, generator=generator)
    logits_MV[2] = logits_MV[2].round()  # equals on the border of the top k
    logits_MV[:, [MASK_ID, 3000]] = EXCLUDED_LOGIT
    before_MV = logits_MV.clone()
    distribution = _encode(logits_MV, top_k=20, top_p=top_p)
    assert torch.equal(logits_MV, before_MV)
    exact = _log_softmax(logits_MV.numpy())
    for row, (ids, log_probs) in enumerate(_rows(distribution)):
        order = np.lexsort((np.arange(3001), -exact[row]))[:20]
        mass = np.exp(exact[row, order]).cumsum()
        num_kept = min(20, int((mass < top_p).sum()) + 1)
        np.testing.assert_array_equal(ids, np.sort(order[:num_kept]))
        np.testing.assert_allclose(log_probs, exact[row, ids], atol=1e-5)
        for index, temperature in enumerate(TEMPERATURES):
            scaled = exact[row] / temperature
            normalizer = np.logaddexp.reduce(scaled)
            tail = np.logaddexp.reduce(np.delete(scaled, ids)) - normalizer
            assert distribution.log_normalizers[index, row] == pytest.approx(normalizer, abs=1e-5)
            assert distribution.tail_log_masses[index, row] == pytest.approx(tail, abs=2e-5)
