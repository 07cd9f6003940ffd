import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student_trainer.losses import LossConfig, TopKTargets
from tests.student_trainer.loss_cases import (
    PADDED_VOCAB_SIZE,
    STUDENT_WIDTH,
    VOCAB_SIZE,
    gradients_of,
    loss_of,
    make_case,
    make_targets,
)


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that is made under it, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("encoding", ["hidden", "top_k"])
def test_no_tensor_of_positions_times_vocabulary_is_ever_made(encoding):
    case = make_case(num_positions=2000)
    targets = make_targets(case, "hidden", 1.0)
    if encoding == "top_k":
        targets = TopKTargets(
            token_ids_MK=torch.arange(3).repeat(2000, 1),
            valid_MK=torch.ones(2000, 3, dtype=torch.bool),
            log_probs_MK=torch.full((2000, 3), math.log(0.25)),
            log_normalizer_M=torch.zeros(2000),
            tail_log_mass_M=torch.full((2000,), math.log(0.25)),
        )
    config = LossConfig(alpha=0.5, max_chunk_elements=100 * VOCAB_SIZE)
    with LargestTensor() as largest:
        loss_of(case, config, targets).total.backward()
    # The gradient of the hidden states is as large as they are; nothing else comes near.
    assert largest.numel == case.hidden_MD.numel() < 2000 * (VOCAB_SIZE - 1)


def test_backward_hands_its_gradients_over_without_a_copy():
    case = make_case()
    total = loss_of(case, LossConfig(alpha=0.0), None).total
    with LargestTensor() as largest:
        total.backward()
    assert case.weight_VD.grad is not None
    assert largest.numel < case.weight_VD.numel()


def test_evaluation_forms_no_gradients():
    case = make_case(num_positions=2000)
    config = LossConfig(alpha=0.0, max_chunk_elements=100 * VOCAB_SIZE)
    expected = loss_of(case, config, None).total
    with torch.no_grad(), LargestTensor() as largest:
        total = loss_of(case, config, None).total
    assert not total.requires_grad
    assert torch.equal(total, expected.detach())
    assert largest.numel <= max(100 * VOCAB_SIZE, PADDED_VOCAB_SIZE * STUDENT_WIDTH)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same_one():
    case = make_case()
    config = LossConfig(alpha=0.0)
    expected, _, _ = gradients_of(loss_of(case, config, None).total, case)
    case.weight_VD.requires_grad_(False)
    case.bias_V.requires_grad_(False)
    loss_of(case, config, None).total.backward()
    torch.testing.assert_close(case.hidden_MD.grad, expected)
    assert case.weight_VD.grad is None
    assert case.bias_V.grad is None


def test_a_graph_may_be_walked_twice_and_scales_with_what_comes_in():
    case = make_case()
    total = loss_of(case, LossConfig(alpha=0.0), None).total
    (once,) = torch.autograd.grad(total, case.hidden_MD, retain_graph=True)
    (tripled,) = torch.autograd.grad(3 * total, case.hidden_MD)
    torch.testing.assert_close(tripled, 3 * once)


def test_mixed_dtypes_and_autocast_change_nothing_but_the_hidden_states_rounding():
    case = make_case(dtype=torch.float32)
    rounded = dataclasses.replace(case, hidden_MD=case.hidden_MD.detach().bfloat16())
    widened = dataclasses.replace(case, hidden_MD=rounded.hidden_MD.float())
    config = LossConfig(alpha=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(rounded, config, None)
    torch.testing.assert_close(loss.total, loss_of(widened, config, None).total)
