"""`python -m tests.bench.loss_arms JSON`: the loss of each implementation, in turns; prints JSON.

The argument holds the fields of `LossWorkload` and "num_rounds".
"""

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from student_trainer.distributions import HiddenTargets, TeacherHead, Vocabulary
from student_trainer.loss_config import DivergenceName, LossConfig
from student_trainer.losses import distillation_loss
from tests.bench import cores
from tests.bench.baselines import full_logits
from tests.bench.turns import take_turns

DIVERGENCES: tuple[DivergenceName, ...] = ("forward_kl", "reverse_kl", "jsd")


@dataclass(frozen=True, kw_only=True)
class LossWorkload:
    """Sizes of a head and a batch."""

    vocab_size: int = 151_936
    hidden_size: int = 896
    """Of student and teacher."""
    num_positions: int = 1024
    max_chunk_elements: int = LossConfig().max_chunk_elements

    @property
    def mask_token_id(self) -> int:
        """The last id."""
        return self.vocab_size - 1

    @property
    def chunk_positions(self) -> int:
        """Positions that the product takes at once."""
        return max(1, self.max_chunk_elements // self.vocab_size)


@dataclass(frozen=True, eq=False)
class Arms:
    """The same batch for every implementation; each call is a forward and a backward."""

    workload: LossWorkload
    hidden_MD: Tensor
    weight_VD: Tensor
    labels_M: Tensor
    teacher_hidden_MD: Tensor
    teacher_weight_VD: Tensor

    @classmethod
    def make(cls, workload: LossWorkload) -> "Arms":
        """Random weights and hidden states."""
        generator = torch.Generator().manual_seed(0)

        def normal(num_rows: int) -> Tensor:
            return torch.randn(num_rows, workload.hidden_size, generator=generator)

        num_positions, vocab_size = workload.num_positions, workload.vocab_size
        scale = workload.hidden_size**-0.5
        return cls(
            workload,
            normal(num_positions),
            normal(vocab_size).mul_(scale),
            torch.randint(vocab_size - 1, (num_positions,), generator=generator),
            normal(num_positions),
            normal(vocab_size).mul_(scale),
        )

    def works(self) -> dict[str, Callable[[], float]]:
        """Every implementation that is here, by name."""
        works: dict[str, Callable[[], float]] = {}
        for name in DIVERGENCES:
            works[f"naive_{name}"] = functools.partial(self.naive, name)
            works[f"chunked_{name}"] = functools.partial(self.chunked, name)
        if importlib.util.find_spec("liger_kernel") is not None:
            works["liger_jsd"] = self.liger
        return works

    def naive(self, divergence: DivergenceName) -> float:
        """All logits at once."""
        hidden_MD, weight_VD = self._leaves()
        loss = full_logits.loss(
            hidden_MD,
            weight_VD,
            labels_M=self.labels_M,
            teacher_hidden_MD=self.teacher_hidden_MD,
            teacher_weight_VD=self.teacher_weight_VD,
            mask_token_id=self.workload.mask_token_id,
            divergence=divergence,
        )
        loss.backward()
        return loss.item()

    def chunked(self, divergence: DivergenceName) -> float:
        """The product's."""
        hidden_MD, weight_VD = self._leaves()
        workload = self.workload
        loss = distillation_loss(
            hidden_MD,
            weight_VD,
            None,
            vocabulary=Vocabulary(
                vocab_size=workload.vocab_size, mask_token_id=workload.mask_token_id
            ),
            labels_M=self.labels_M,
            weights_M=torch.ones(workload.num_positions),
            targets=HiddenTargets(self.teacher_hidden_MD, TeacherHead(self.teacher_weight_VD)),
            config=LossConfig(
                divergence=divergence, max_chunk_elements=workload.max_chunk_elements
            ),
            normalizer=workload.num_positions,
        ).total
        loss.backward()
        return loss.item()

    def liger(self) -> float:
        """The library's JSD, on as many positions at once; it knows no mask id."""
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: PLC0415 - optional

        hidden_MD, weight_VD = self._leaves()
        loss_of = LigerFusedLinearJSDLoss(compiled=False, chunk_size=self.workload.chunk_positions)
        loss = loss_of(
            hidden_MD, weight_VD, self.teacher_hidden_MD, self.teacher_weight_VD, self.labels_M
        )
        loss.backward()
        return float(loss)

    def _leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden_MD.detach().requires_grad_(), self.weight_VD.detach().requires_grad_()


def main() -> None:
    """Measures as the argument says."""
    cores.pin(min)
    torch.set_num_threads(1)
    fields = json.loads(sys.argv[1])
    num_rounds = fields.pop("num_rounds")
    turns = take_turns(Arms.make(LossWorkload(**fields)).works(), num_rounds=num_rounds)
    json.dump(
        {name: [dataclasses.asdict(turn) for turn in taken] for name, taken in turns.items()},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
