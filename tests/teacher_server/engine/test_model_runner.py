import copy

import pytest
import torch

from masked_diffusion.families import EXCLUDED_LOGIT, Denoiser
from masked_diffusion.families.qwen2 import Qwen2
from teacher_server.engine.model_runner import ModelRunner
from tests.teacher_server import calls


class _Unpackable(Qwen2):
    """Takes padded rows alone, as encoders do."""

    def enable_ragged(self) -> bool:
        return False


@pytest.fixture(params=["packed", "padded"])
def denoiser(request: pytest.FixtureRequest, tiny_denoiser: Denoiser) -> Denoiser:
    if request.param == "packed":
        return tiny_denoiser
    info = tiny_denoiser.info
    unpackable = _Unpackable(
        tiny_denoiser.model,
        tiny_denoiser.tokenizer,
        name=info.name,
        mask_token_id=info.mask_token_id,
    )
    return unpackable.eval()


@pytest.mark.parametrize("lengths", [[9, 9, 9], [4, 17, 9], [17, 4, 4, 17, 1]])
def test_rows_of_any_length_come_out_as_each_alone(lengths: list[int], denoiser: Denoiser) -> None:
    runner = ModelRunner(denoiser, max_head_elements=1000)
    assert runner.packs_rows == (not isinstance(denoiser, _Unpackable))
    rows = [
        calls.make_state(denoiser.info, length=length, num_masked=min(2, length - 1), seed=seed)
        for seed, length in enumerate(lengths)
    ]
    hidden = runner.hidden_states(
        [torch.from_numpy(row).long() for row in rows], times=[0.5] * len(rows)
    )
    for row, hidden_LD in zip(rows, hidden, strict=True):
        assert hidden_LD.shape == (len(row), denoiser.info.hidden_size)
        alone_LD = torch.from_numpy(calls.hidden_of(denoiser, row))
        torch.testing.assert_close(hidden_LD, alone_LD, atol=1e-5, rtol=1e-5)


def test_the_head_is_applied_in_bounded_chunks(tiny_denoiser: Denoiser) -> None:
    vocab_size = tiny_denoiser.info.vocab_size
    runner = ModelRunner(tiny_denoiser, max_head_elements=4 * vocab_size)
    hidden_MD = torch.randn(10, tiny_denoiser.info.hidden_size)
    chunks = list(runner.logits_chunks(hidden_MD))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(chunks), tiny_denoiser.logits(hidden_MD))
    assert bool((chunks[0][:, tiny_denoiser.info.mask_token_id] == EXCLUDED_LOGIT).all())


def test_a_chunk_holds_one_position_at_least(tiny_denoiser: Denoiser) -> None:
    runner = ModelRunner(tiny_denoiser, max_head_elements=1)
    hidden_MD = torch.randn(3, tiny_denoiser.info.hidden_size)
    assert [len(chunk) for chunk in runner.logits_chunks(hidden_MD)] == [1, 1, 1]


def test_no_positions_give_one_empty_chunk(tiny_denoiser: Denoiser) -> None:
    runner = ModelRunner(tiny_denoiser, max_head_elements=1000)
    (chunk,) = runner.logits_chunks(torch.zeros(0, tiny_denoiser.info.hidden_size))
    assert chunk.shape == (0, tiny_denoiser.info.vocab_size)


def test_a_forward_that_is_not_finite_proves_nothing(tiny_denoiser: Denoiser) -> None:
    broken = copy.deepcopy(tiny_denoiser)
    ModelRunner(broken, max_head_elements=1000).prove()
    with torch.no_grad():
        broken.head_weight[broken.info.mask_token_id] = torch.nan  # tied: the embedding too
    with pytest.raises(FloatingPointError, match="not finite"):
        ModelRunner(broken, max_head_elements=1000).prove()
