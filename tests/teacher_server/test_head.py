import copy

import numpy as np
import pytest
import torch

from masked_diffusion.families import Denoiser
from protos import parts
from teacher_server import head
from teacher_server.facts import facts_of
from tests.teacher_server.denoisers import ControlledDenoiser


def _chunks(denoiser: Denoiser) -> list[bytes]:
    chunks: list[bytes] = []
    while (chunk := head.head_chunk(denoiser, len(chunks))) is not None:
        chunks.append(chunk)
    return chunks


class _Biased(ControlledDenoiser):
    """A head with a bias, which no family of today has."""

    @property
    def head_bias(self) -> torch.Tensor:
        return torch.arange(self.info.padded_vocab_size, dtype=self.head_weight.dtype)


@pytest.mark.parametrize("message_bytes", [1, 1000, 1 << 20])
def test_chunks_are_the_real_rows_of_the_weight_and_then_the_bias(
    message_bytes: int, tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MESSAGE_BYTES", message_bytes)
    denoiser = _Biased(tiny_denoiser)
    vocab_size, hidden_size = denoiser.info.vocab_size, denoiser.info.hidden_size
    chunks = _chunks(denoiser)
    row_bytes = 4 * hidden_size
    assert all(len(chunk) <= max(message_bytes, row_bytes) for chunk in chunks[:-1])
    data = b"".join(chunks)
    assert len(data) == facts_of(denoiser, revision="r").num_head_bytes
    numbers = np.frombuffer(data, "<f4")
    size = vocab_size * hidden_size
    np.testing.assert_array_equal(
        numbers[:size].reshape(vocab_size, hidden_size),
        denoiser.head_weight[:vocab_size].detach().numpy(),
    )
    np.testing.assert_array_equal(numbers[size:], np.arange(vocab_size))
    assert facts_of(denoiser, revision="r").has_head_bias


def test_a_head_travels_in_the_denoisers_own_dtype(tiny_denoiser: Denoiser) -> None:
    denoiser = copy.deepcopy(tiny_denoiser).bfloat16()
    assert facts_of(denoiser, revision="r").dtype == "bf16"
    data = b"".join(_chunks(denoiser))
    assert len(data) == facts_of(denoiser, revision="r").num_head_bytes
    bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
    vocab_size = denoiser.info.vocab_size
    own_VD = denoiser.head_weight[:vocab_size].detach().float().numpy()
    np.testing.assert_array_equal(bits.view(np.float32).reshape(own_VD.shape), own_VD)
