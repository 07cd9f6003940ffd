"""A shared teacher's head against the whole one, in a module of its own that ranks import."""

import torch

from student_trainer.losses import TeacherHead
from student_trainer.parallel import start_parallel
from student_trainer.teacher_head import ShardedTeacherHead


def check() -> None:
    """On every rank, for every number format that a head comes in, with and without a bias."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(7, 3, generator=generator)
    hidden_MD = torch.randn(5, 3, generator=generator)
    with start_parallel() as parallel:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for bias_V in (None, torch.arange(7.0).to(dtype)):
                whole = TeacherHead(weight_VD.to(dtype), bias_V=bias_V, logit_scale=0.5)
                shared = ShardedTeacherHead(
                    whole, rank=parallel.rank, world_size=parallel.world_size
                )
                size = whole.weight_VD.nbytes
                assert shared.num_bytes < size
                with shared.gathered():
                    assert shared.num_bytes >= size
                    ours = shared.logits(hidden_MD.to(dtype), vocab_size=6)
                assert torch.equal(ours, whole.logits(hidden_MD.to(dtype), vocab_size=6))
                assert shared.num_bytes < size
