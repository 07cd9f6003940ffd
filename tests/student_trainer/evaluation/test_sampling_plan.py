"""Start states, and the samplers that fit."""

import pytest
import torch

from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from student_trainer.evaluation.sampler_spec import parse_sampler
from student_trainer.evaluation.sampling_plan import choose_samplers, draw_start_states, write
from tests.held_out import dataset_of
from tests.tiny_models import PYTHON_SOURCES


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer):
    return dataset_of([f"{s}y = {i}\n" for i in range(4) for s in PYTHON_SOURCES], tiny_tokenizer)


def starts(dataset, info, **options):
    settings = {"num_samples": 8, "length": 16, "prompt_tokens": 0, "seed": 3} | options
    return draw_start_states(dataset, info=info, **settings)


def test_only_the_leading_special_token_is_given_without_a_prompt(dataset, tiny_denoiser):
    found = starts(dataset, tiny_denoiser.info)
    assert found.x0_BL.shape == (8, 16)
    assert (found.x0_BL[:, 0] == tiny_denoiser.tokenizer.bos_token_id).all()
    assert found.num_given_B.tolist() == [1] * 8
    assert found.frozen().sum() == 8


def test_a_prompt_comes_from_the_held_out_text(dataset, tiny_denoiser):
    found = starts(dataset, tiny_denoiser.info, prompt_tokens=5)
    assert found.num_given_B.tolist() == [6] * 8
    plain = starts(dataset, tiny_denoiser.info)
    torch.testing.assert_close(found.x0_BL, plain.x0_BL)


def test_too_few_sequences_of_the_length_are_refused(dataset, tiny_denoiser):
    with pytest.raises(ValueError, match=r"lower --num_samples or --gen_length, or give more"):
        starts(dataset, tiny_denoiser.info, num_samples=10_000)


def test_what_is_written_depends_on_the_seed_and_not_on_the_batch(dataset, tiny_denoiser):
    found = starts(dataset, tiny_denoiser.info)
    masked_BL = found.x0_BL.masked_fill(~found.frozen(), tiny_denoiser.info.mask_token_id)
    lengths_B = torch.full((8,), 16)
    config = SamplerConfig(algorithm="ancestral", num_steps=4, temperature=1.0)

    def written(batch_size, seed=0):
        return write(
            tiny_denoiser,
            masked_BL,
            frozen_BL=found.frozen(),
            lengths_B=lengths_B,
            config=config,
            seed=seed,
            batch_size=batch_size,
        )

    whole = written(8)
    torch.testing.assert_close(written(3).x_BL, whole.x_BL)
    assert not torch.equal(written(8, seed=1).x_BL, whole.x_BL)
    alone = [
        sample(
            tiny_denoiser,
            masked_BL[row : row + 1],
            frozen_BL=found.frozen()[row : row + 1],
            lengths_B=lengths_B[:1],
            config=config,
            seeds=[0],
            sequence_ids=[row],
        )
        for row in range(8)
    ]
    torch.testing.assert_close(torch.cat([result.x for result in alone]), whole.x_BL)
    assert whole.num_forwards == sum(int(result.num_forwards_B) for result in alone) / 8
    assert whole.seconds > 0


def test_samplers_that_do_not_fit_are_told_and_none_that_fits_is_an_error(tiny_denoiser):
    specs = [parse_sampler("multinomial"), parse_sampler("entropy")]
    choice = choose_samplers(specs, tiny_denoiser.info, num_steps=4, temperature=1.0)
    assert [spec.label for spec in choice.fitting] == ["entropy"]
    assert list(choice.reasons) == ["multinomial"]
    assert "for absorbing noise" in choice.reasons["multinomial"]
    with pytest.raises(ValueError, match="sampler 'multinomial' does not fit"):
        choose_samplers(specs[:1], tiny_denoiser.info, num_steps=4, temperature=1.0)
