"""A head that ranks share: each holds its rows, all have the whole within a step."""

from pathlib import Path

import pytest
import torch

from student_trainer.losses import TeacherHead
from student_trainer.teacher_head import ShardedTeacherHead
from tests import head_on_ranks, ranks


# 7 rows on 2 and 3 ranks: the last share is padded.
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_hold_shares_and_have_the_same_logits_as_the_whole(num_ranks: int, tmp_path: Path):
    ranks.run(head_on_ranks.check, num_ranks=num_ranks, folder=tmp_path)


def test_outside_of_a_step_it_is_not_read():
    head = ShardedTeacherHead(TeacherHead(torch.zeros(4, 2)), rank=0, world_size=2)
    with pytest.raises(AssertionError, match="read outside of a step"):
        head.logits(torch.zeros(1, 2), vocab_size=4)
