"""The teacher's head with its rows divided over the ranks, whole only while a step needs it."""

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from student_trainer.distributions import TeacherHead

# torch 2.13 renamed it, and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class ShardedTeacherHead:
    """Keeps this rank's rows of a head that is the same on every rank.

    Gathered once a step, as the student's head is: the loss of every micro-batch reads all of it,
    chunk by chunk. It is no parameter of any module, so no checkpoint ever holds it.
    """

    def __init__(self, head: TeacherHead, *, rank: int, world_size: int) -> None:
        """Takes rows out of a whole head; the caller drops the rest."""
        self._num_rows = head.weight_VD.shape[0]
        # Equal shares, the last one padded.
        share = -(-self._num_rows // world_size)
        rows_SD = head.weight_VD[rank * share : (rank + 1) * share]
        self._shard_SD = rows_SD.new_zeros(share, head.weight_VD.shape[1])
        self._shard_SD[: len(rows_SD)] = rows_SD
        self._world_size = world_size
        self._rest = dataclasses.replace(head, weight_VD=self._shard_SD[:0])
        self._whole: TeacherHead | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight that this rank holds now."""
        held_VD = self._shard_SD if self._whole is None else self._whole.weight_VD
        return held_VD.untyped_storage().nbytes()

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Holds the whole head for the block; all ranks enter together."""
        padded_VD = self._shard_SD.new_empty(
            self._world_size * self._shard_SD.shape[0], self._shard_SD.shape[1]
        )
        # As bytes: not every backend knows every number format.
        _all_gather(padded_VD.view(torch.uint8), self._shard_SD.view(torch.uint8))
        self._whole = dataclasses.replace(self._rest, weight_VD=padded_VD[: self._num_rows])
        try:
            yield
        finally:
            self._whole = None

    def logits(self, hidden_MD: Tensor, *, vocab_size: int) -> Tensor:
        """Same as `TeacherHead.logits`, within `gathered` alone."""
        assert self._whole is not None, "the teacher's head is read outside of a step"
        return self._whole.logits(hidden_MD, vocab_size=vocab_size)
