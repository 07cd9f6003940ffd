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
CASES: dict[int, dict[str, dict[str, object]]] = {
    2: {
        "ddp": {"data_parallel_mode": "ddp", "micro_batch_size": 2},
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
        "fsdp_untied": {"data_parallel_mode": "fsdp", "micro_batch_size": 2, "tied": False},
    },
    4: {
        "ddp": {"data_parallel_mode": "ddp", "micro_batch_size": 2},
        "fsdp": {"data_parallel_mode": "fsdp", "micro_batch_size": 1},
        "hsdp": {
            "data_parallel_mode": "hsdp",
            "data_parallel_replicate_size": 2,
            "micro_batch_size": 1,
        },
    },
}


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
    wholes = {tied: on_one_rank(micro_batch_size=8, tied=tied) for tied in (True, False)}
    errors = {
        name: relative_error(
            load_file(tmp_path / f"{name}.safetensors"), wholes[bool(fields.get("tied", True))]
        )
        for name, fields in CASES[num_ranks].items()
    }
    assert max(errors.values()) < TOLERANCE, errors
