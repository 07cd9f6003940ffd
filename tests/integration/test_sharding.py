"""One step on 1, 2 and 4 ranks, replicated and sharded, has the same loss and gradient."""

from collections.abc import Iterable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from student_trainer.parallel import Parallel
from tests import ranks, step_on_ranks
from tests.step_on_ranks import Case, measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Float32 sums in another order: 2^-24 an addition, over some tens of them.
TOLERANCE = 1e-6
SECOND_HALF = (4, 5, 6, 7)
"""Of the global batch: all that the second of two ranks has, so that it has no loss at all."""
CASES: dict[int, dict[str, dict[str, object]]] = {
    2: {
        "ddp": {"micro_batch_size": 2},
        "ddp_uneven": {"micro_batch_size": 2, "is_uneven": True},
        "ddp_empty_rank": {"micro_batch_size": 2, "empty_places": SECOND_HALF},
        "fsdp": {"data_parallel_mode": "fsdp", "micro_batch_size": 4},
        "fsdp_accumulated": {"data_parallel_mode": "fsdp", "micro_batch_size": 1},
        "fsdp_recomputed": {
            "data_parallel_mode": "fsdp",
            "micro_batch_size": 2,
            "enable_gradient_checkpointing": True,
        },
        "fsdp_offloaded": {
            "data_parallel_mode": "fsdp",
            "micro_batch_size": 4,
            "enable_fsdp_offload": True,
        },
        "fsdp_uneven": {"data_parallel_mode": "fsdp", "micro_batch_size": 2, "is_uneven": True},
        "fsdp_empty_rank": {
            "data_parallel_mode": "fsdp",
            "micro_batch_size": 2,
            "empty_places": SECOND_HALF,
        },
        "fsdp_untied": {"data_parallel_mode": "fsdp", "micro_batch_size": 2, "student": "untied"},
        "fsdp_block_causal": {
            "data_parallel_mode": "fsdp",
            "micro_batch_size": 2,
            "student": "block_causal",
            "is_uneven": True,
        },
        "fsdp_uniform": {
            "data_parallel_mode": "fsdp",
            "micro_batch_size": 2,
            "student": "uniform",
            "loss_weighting": "none",
            "is_uneven": True,
        },
    },
    4: {
        "ddp": {"micro_batch_size": 2},
        "fsdp": {"data_parallel_mode": "fsdp", "micro_batch_size": 1},
        "hsdp": {
            "data_parallel_mode": "hsdp",
            "data_parallel_replicate_size": 2,
            "micro_batch_size": 1,
        },
        "hsdp_uneven_with_empty_ranks": {
            "data_parallel_mode": "hsdp",
            "data_parallel_replicate_size": 2,
            "micro_batch_size": 2,
            "is_uneven": True,
            "empty_places": SECOND_HALF,
        },
    },
}
WHAT_IS_COMPUTED = ("student", "loss_weighting", "empty_places")
"""Fields of a case that change its numbers; the others only change who computes them."""


def on_one_rank(**fields: object) -> dict[str, Tensor]:
    return measure(Case(Parallel(device=torch.device("cpu")), fields))


def relative_error(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The larger of the loss's and the whole gradient's.

    Not of each parameter's: a bias of keys has no gradient but rounding, for softmax ignores it.
    """
    assert ours.keys() == theirs.keys()

    def error(names: Iterable[str]) -> float:
        difference = sum(float((ours[name] - theirs[name]).square().sum()) for name in names)
        return float((difference / sum(float(theirs[n].square().sum()) for n in names)) ** 0.5)

    return max(error(["loss"]), error(theirs.keys() - {"loss"}))


def test_micro_batches_of_any_size_have_the_same_gradient():
    whole = on_one_rank(micro_batch_size=8)
    for size in (1, 2, 4):
        assert relative_error(on_one_rank(micro_batch_size=size), whole) < TOLERANCE


@pytest.mark.parametrize("num_ranks", list(CASES))
def test_ranks_have_the_gradient_of_one_rank(num_ranks, tmp_path):
    ranks.run(
        step_on_ranks.measure_all, CASES[num_ranks], tmp_path, num_ranks=num_ranks, folder=tmp_path
    )
    wholes: dict[str, dict[str, Tensor]] = {}
    errors = {}
    for name, fields in CASES[num_ranks].items():
        same = {key: value for key, value in fields.items() if key in WHAT_IS_COMPUTED}
        if repr(same) not in wholes:
            wholes[repr(same)] = on_one_rank(micro_batch_size=8, **same)
        found = load_file(tmp_path / f"{name}.safetensors")
        errors[name] = relative_error(found, wholes[repr(same)])
    assert max(errors.values()) < TOLERANCE, errors
