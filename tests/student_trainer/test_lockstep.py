"""Batches that are added so that ranks run equally many forwards, and add nothing else."""

import dataclasses

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer import losses
from student_trainer.lockstep import pad_batches, without_loss
from student_trainer.objective import DistillationObjective
from student_trainer.parallel import Parallel
from student_trainer.states import StateBatch
from tests import tiny_models
from tests.training import ONE_RANK


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WithMore(Parallel):
    """A rank beside one that has more batches."""

    most: float

    def maximum(self, value: float) -> float:
        return max(value, self.most)


@pytest.fixture
def denoiser(tiny_tokenizer) -> Denoiser:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer), num_layers=1)
    return checkpoints.new_denoiser(config, tiny_tokenizer, seed=5)


def batch(denoiser: Denoiser, targets: losses.Targets | None) -> StateBatch:
    mask = denoiser.info.mask_token_id
    xt_BL = torch.tensor([[5, mask, 7, mask], [mask, 9, 0, 0]])
    return StateBatch(
        xt_BL=xt_BL,
        lengths_B=torch.tensor([4, 2]),
        loss_BL=xt_BL == mask,
        labels_M=torch.tensor([6, 8, 10]),
        t_B=torch.tensor([0.5, 0.4]),
        num_maskable_B=torch.tensor([4, 2]),
        targets=targets,
        clean_BL=torch.tensor([[5, 6, 7, 8], [10, 9, 0, 0]]),
    )


def all_targets(denoiser: Denoiser) -> dict[str, losses.Targets]:
    size, width = denoiser.info.vocab_size, denoiser.info.hidden_size
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": losses.HiddenTargets(
            torch.randn(3, width, generator=generator),
            losses.TeacherHead(torch.randn(size, width, generator=generator)),
        ),
        "logits": losses.LogitsTargets(torch.randn(3, size, generator=generator)),
        "top_k": losses.TopKTargets(
            token_ids_MK=torch.tensor([[4, 5], [6, 7], [8, 9]]),
            valid_MK=torch.ones(3, 2, dtype=torch.bool),
            log_probs_MK=torch.full((3, 2), -2.0),
            log_normalizer_M=torch.zeros(3),
            tail_log_mass_M=torch.full((3,), -0.3),
        ),
    }


@pytest.mark.parametrize("kind", ["none", "hidden", "logits", "top_k"])
def test_a_batch_without_loss_runs_forward_and_backward_and_adds_nothing(denoiser, kind):
    targets = None if kind == "none" else all_targets(denoiser)[kind]
    config = losses.LossConfig(alpha=0.0 if targets is None else 0.5)
    objective = DistillationObjective(denoiser, config)
    real = batch(denoiser, targets)
    assert float(objective(real, 1.0).total.detach()) > 0

    result = objective(without_loss(real), 1.0)
    result.total.backward()
    assert (float(result.total.detach()), result.ce, result.kd, sum(result.by_time)) == (0, 0, 0, 0)
    gradients = [parameter.grad for parameter in denoiser.parameters()]
    # There, since other ranks wait for them in the backward, and zero.
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_ranks_with_fewer_batches_repeat_their_last_one_without_loss(denoiser):
    batches = [batch(denoiser, None), batch(denoiser, None)]
    padded = pad_batches(batches, WithMore(device=torch.device("cpu"), most=4.0))
    assert padded[:2] == batches
    assert [one.num_masked for one in padded] == [3, 3, 0, 0]
    for one in padded[2:]:
        assert torch.equal(one.xt_BL, batches[-1].xt_BL)
        assert one.clean_BL is not None and batches[-1].clean_BL is not None
        assert torch.equal(one.clean_BL, batches[-1].clean_BL)
    assert pad_batches(batches, ONE_RANK) == batches
