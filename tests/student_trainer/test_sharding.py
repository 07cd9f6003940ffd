"""What cannot be laid over ranks is refused; that it computes the same: tests/integration."""

import pytest
import torch

from masked_diffusion import checkpoints
from student_trainer.losses import LossConfig
from student_trainer.objective import DistillationObjective
from student_trainer.parallel import Parallel
from student_trainer.sharding import distribute
from student_trainer.train_options import ShardingOptions
from tests import tiny_models
from tests.training import ONE_RANK


@pytest.fixture
def objective(tiny_tokenizer) -> DistillationObjective:
    config = tiny_models.qwen2_config(vocab_size=len(tiny_tokenizer), num_layers=1)
    denoiser = checkpoints.new_denoiser(config, tiny_tokenizer, seed=0)
    return DistillationObjective(denoiser, LossConfig(alpha=0.0))


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "hsdp"])
def test_one_rank_without_torchrun_holds_everything(objective, mode):
    laid_out = distribute(objective, ONE_RANK, ShardingOptions(data_parallel_mode=mode))
    assert laid_out.module is objective and not laid_out.is_sharded
    with laid_out.accumulate(is_last=False):
        pass


def test_offloading_without_ranks_is_refused(objective):
    options = ShardingOptions(data_parallel_mode="fsdp", enable_fsdp_offload=True)
    with pytest.raises(ValueError, match=r"enable_fsdp_offload needs ranks; start .* torchrun"):
        distribute(objective, ONE_RANK, options)


def test_replicas_that_do_not_divide_the_ranks_are_refused(objective):
    parallel = Parallel(rank=0, world_size=4, device=torch.device("cpu"))
    options = ShardingOptions(data_parallel_mode="hsdp", data_parallel_replicate_size=3)
    with pytest.raises(ValueError, match=r"replicate_size is 3, which does not divide the 4 ranks"):
        distribute(objective, parallel, options)
