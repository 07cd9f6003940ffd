"""The distillation loss through a real server, and the same computed naively in this process.

The naive side knows none of our losses, encodings and alignment code: transformers' own logits of
each sequence alone, in float64, and plain probabilities on the ids that can occur.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.info import Alignment
from student_trainer import wire
from student_trainer.batches import BatchPlan
from student_trainer.client import TeacherClient
from student_trainer.config import DistillConfig, TrainConfig
from student_trainer.data import TokenizedDataset
from student_trainer.loss_config import DivergenceName
from student_trainer.losses import LossConfig, normalizer_count
from student_trainer.objective import DistillationObjective
from student_trainer.states import (
    BatchReader,
    MicroStep,
    NoisedStates,
    StateBatch,
    TrajectoryStates,
)
from student_trainer.targets import RemoteTeacher
from tests import tiny_models

DIVERGENCES: tuple[DivergenceName, ...] = get_args(DivergenceName)
TEMPERATURES = (1.0, 2.0)
LENGTHS = (23, 9, 40, 31, 17, 5, 28, 36)
"""Tokens of each sequence of the batch, each its own, so that a row tells its sequence."""

PROMPT_FRACTION = 0.25
"""Share of a sequence that is given where the teacher fills in the rest."""


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """How a teacher and a student are built."""

    teacher_alignment: Alignment
    student_alignment: Alignment
    teacher_tied: bool
    student_tied: bool


PAIRS: Mapping[str, PairSpec] = {
    "shifted_tied": PairSpec(
        teacher_alignment="shifted",
        student_alignment="shifted",
        teacher_tied=True,
        student_tied=True,
    ),
    "aligned_untied": PairSpec(
        teacher_alignment="aligned",
        student_alignment="aligned",
        teacher_tied=False,
        student_tied=False,
    ),
    "shifted_untied_to_aligned_tied": PairSpec(
        teacher_alignment="shifted",
        student_alignment="aligned",
        teacher_tied=False,
        student_tied=True,
    ),
    "aligned_tied_to_shifted_untied": PairSpec(
        teacher_alignment="aligned",
        student_alignment="shifted",
        teacher_tied=True,
        student_tied=False,
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A teacher and a student that share a tokenizer, and ragged data to train on."""

    teacher: Denoiser
    student: Denoiser
    reader: BatchReader

    @cached_property
    def wide_teacher(self) -> Denoiser:
        """The teacher in float64."""
        return copy.deepcopy(self.teacher).double()


@dataclass(frozen=True, kw_only=True, eq=False)
class LossAndGradient:
    """A loss and its gradient for every parameter of the student."""

    loss: float
    gradient: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RelativeErrors:
    """How far a loss and its gradient are from the reference."""

    loss: float
    gradient: float
    """The largest over parameters, each relative to the norm of its own gradient."""


def new_pair(spec: PairSpec, tokenizer: PreTrainedTokenizerFast) -> Pair:
    """Builds both with random weights; the teacher is wider and deeper, in evaluation mode."""
    teacher = _new_denoiser(
        tokenizer,
        alignment=spec.teacher_alignment,
        tied=spec.teacher_tied,
        hidden_size=48,
        num_layers=3,
        seed=1,
    )
    student = _new_denoiser(
        tokenizer,
        alignment=spec.student_alignment,
        tied=spec.student_tied,
        hidden_size=32,
        num_layers=2,
        seed=2,
    )
    return Pair(teacher=teacher.eval(), student=student, reader=new_reader(student))


def copied_pair(pair: Pair) -> Pair:
    """A student that is a deep copy of the teacher."""
    student = copy.deepcopy(pair.teacher).train()
    return Pair(teacher=pair.teacher, student=student, reader=new_reader(student))


def _new_denoiser(
    tokenizer: PreTrainedTokenizerFast,
    *,
    alignment: Alignment,
    tied: bool,
    hidden_size: int,
    num_layers: int,
    seed: int,
) -> Denoiser:
    # Padded columns, so that leaving them in would show.
    config = tiny_models.qwen2_config(
        vocab_size=len(tokenizer) + 20,
        hidden_size=hidden_size,
        num_layers=num_layers,
        tie_word_embeddings=tied,
    )
    config.logit_alignment = alignment
    return checkpoints.new_denoiser(config, tokenizer, seed=seed)


def new_reader(student: Denoiser) -> BatchReader:
    """One batch of random ordinary tokens, each sequence behind its start token."""
    info = student.info
    ordinary = np.setdiff1d(np.arange(info.vocab_size), info.special_token_ids)
    generator = np.random.default_rng(0)
    sequences = [
        np.concatenate([[info.bos_token_id], generator.choice(ordinary, length - 1)])
        for length in LENGTHS
    ]
    dataset = TokenizedDataset(
        token_ids=np.concatenate(sequences).astype(np.int32),
        offsets=np.cumsum([0, *LENGTHS], dtype=np.int64),
        prompt_lengths=np.zeros(len(LENGTHS), dtype=np.int32),
        num_documents=len(LENGTHS),
        num_dropped_chunks=0,
        num_dropped_tokens=0,
    )
    return BatchReader(
        dataset=dataset,
        plan=BatchPlan(dataset_size=len(LENGTHS), global_batch_size=len(LENGTHS), seed=0),
        micro_batch_size=len(LENGTHS),
        rank=0,
        world_size=1,
        info=info,
    )


def target_spec(
    encoding: wire.Encoding, *, temperature: float = 1.0, top_k: int = 4096, dtype: str = "f32"
) -> wire.TargetSpec:
    """How targets are asked for here: float32, and TOP_K at its full support."""
    return wire.TargetSpec(
        encoding=encoding,
        dtype=dtype,  # type: ignore[arg-type]
        top_k=top_k,
        temperatures=(temperature,),
    )


def noised_batch(pair: Pair, address: str | None, spec: wire.TargetSpec) -> StateBatch:
    """Noised data, with the targets of the teacher at `address`; None asks nobody."""
    config = TrainConfig(output_dir="unused", seed=3)
    if address is None:
        (batch,) = NoisedStates(reader=pair.reader, config=config, teacher=None).states(_FIRST)
        return batch
    with TeacherClient(address) as client:
        teacher = RemoteTeacher(client, spec=spec)
        (batch,) = NoisedStates(reader=pair.reader, config=config, teacher=teacher).states(_FIRST)
    return batch


def trajectory_batches(pair: Pair, address: str, spec: wire.TargetSpec) -> list[StateBatch]:
    """States that the teacher at `address` passes while it fills in the data, with its targets."""
    distill = DistillConfig(
        teacher_address=address,
        num_sampling_steps=6,
        collect_every_n_steps=2,
        prompt_fraction=PROMPT_FRACTION,
    )
    with TeacherClient(address) as client:
        sampler = wire.SamplerSpec(algorithm="p2", num_steps=6, temperature=0.7, top_k=50)
        source = TrajectoryStates(
            reader=pair.reader,
            config=TrainConfig(output_dir="unused", seed=3),
            distill=distill,
            teacher=RemoteTeacher(client, spec=spec, sampler=sampler),
        )
        return source.states(_FIRST)


_FIRST = MicroStep(0, 0)


def measured(pair: Pair, batch: StateBatch, config: LossConfig) -> LossAndGradient:
    """What the trainer computes and differentiates."""
    objective = DistillationObjective(pair.student, config)
    objective.zero_grad(set_to_none=True)
    normalizer = normalizer_count(
        config,
        num_masked=batch.num_masked,
        num_tokens=int(batch.num_maskable_B.sum()),
        num_sequences=len(batch.lengths_B),
    )
    loss = objective(batch, float(normalizer)).total
    loss.backward()
    return _gathered(loss, pair.student)


def naive(
    pair: Pair,
    batch: StateBatch,
    config: LossConfig,
    *,
    top_k: int | None = None,
    prompt_fraction: float = 0.0,
) -> LossAndGradient:
    """The same in float64: weights 1 / t, divided by the number of tokens that may be masked.

    Args:
        top_k: All ids but the teacher's `top_k` most probable are one bucket; None = none are.
        prompt_fraction: Share of each sequence's tokens that is given, and so never masked.
    """
    student = copy.deepcopy(pair.student).double()
    student.zero_grad(set_to_none=True)
    total, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for row, t in enumerate(batch.t_B.double().tolist()):
        x0_L = _clean_sequence(pair, int(batch.lengths_B[row]))
        num_ordinary = len(x0_L) - 1  # all but the start token
        num_tokens += num_ordinary - int(num_ordinary * prompt_fraction)
        masked_row = _masked_row(pair, student, batch, row, x0_L)
        total = total + _row_loss(masked_row, config, top_k) / t
    loss = total / num_tokens
    loss.backward()
    return _gathered(loss, student)


def relative_errors(actual: LossAndGradient, expected: LossAndGradient) -> RelativeErrors:
    """Compares with the reference, parameter by parameter."""
    assert actual.gradient.keys() == expected.gradient.keys()
    return RelativeErrors(
        loss=abs(actual.loss - expected.loss) / abs(expected.loss),
        gradient=max(
            float((actual.gradient[name].double() - exact).norm() / exact.norm())
            for name, exact in expected.gradient.items()
        ),
    )


def gradient_norm(gradient: Mapping[str, Tensor]) -> float:
    """The norm over all parameters."""
    return float(sum(float(part.double().square().sum()) for part in gradient.values())) ** 0.5


def worst(errors: Sequence[RelativeErrors]) -> RelativeErrors:
    """The largest of each kind."""
    return RelativeErrors(
        loss=max(error.loss for error in errors), gradient=max(error.gradient for error in errors)
    )


@dataclass(frozen=True, eq=False)
class _MaskedRow:
    """A row's masked positions: logits of every id but the mask, padding cut, and the truth."""

    student_MV: Tensor
    teacher_MV: Tensor
    labels_M: list[int]
    """Columns of the true tokens."""


def _clean_sequence(pair: Pair, length: int) -> list[int]:
    return [int(token) for token in pair.reader.dataset.sequence(LENGTHS.index(length))]


def _masked_row(
    pair: Pair, student: Denoiser, batch: StateBatch, row: int, x0_L: list[int]
) -> _MaskedRow:
    xt_L = batch.xt_BL[row, : len(x0_L)]
    positions = torch.nonzero(batch.loss_BL[row]).flatten().tolist()
    assert all(xt_L[position] == student.info.mask_token_id for position in positions)
    ids = [i for i in range(student.info.vocab_size) if i != student.info.mask_token_id]
    student_LV = _raw_logits(student, xt_L)[:, ids]
    teacher_LV = _raw_logits(pair.wide_teacher, xt_L)[:, ids].detach()
    return _MaskedRow(
        student_LV[[_source(student, position) for position in positions]],
        teacher_LV[[_source(pair.teacher, position) for position in positions]],
        [ids.index(x0_L[position]) for position in positions],
    )


def _raw_logits(denoiser: Denoiser, ids_L: Tensor) -> Tensor:
    """Transformers' own output for one sequence without padding, [L, padded V]."""
    return denoiser.model(input_ids=ids_L[None], use_cache=False).logits[0]


def _source(denoiser: Denoiser, position: int) -> int:
    """The row of the raw output that is about the token at `position`."""
    return position - 1 if denoiser.info.alignment == "shifted" else position


def _row_loss(row: _MaskedRow, config: LossConfig, top_k: int | None) -> Tensor:
    """(1 - alpha) CE + alpha T^2 D in nats, summed over positions."""
    truth_M = _softmax(row.student_MV)[range(len(row.labels_M)), row.labels_M]
    student_MV = _softmax(row.student_MV / config.temperature)
    teacher_MV = _softmax(row.teacher_MV / config.temperature)
    if top_k is not None:
        student_MV, teacher_MV = _bucketed(student_MV, teacher_MV, top_k)
    if config.divergence == "forward_kl":
        divergence = _kl(teacher_MV, student_MV)
    elif config.divergence == "reverse_kl":
        divergence = _kl(student_MV, teacher_MV)
    else:
        middle_MV = config.jsd_beta * teacher_MV + (1 - config.jsd_beta) * student_MV
        divergence = config.jsd_beta * _kl(teacher_MV, middle_MV)
        divergence = divergence + (1 - config.jsd_beta) * _kl(student_MV, middle_MV)
    distillation = config.temperature**2 * divergence
    return (1 - config.alpha) * -truth_M.log().sum() + config.alpha * distillation


def _bucketed(student_MV: Tensor, teacher_MV: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Probabilities of the teacher's most probable ids, and of all others together."""
    order_MV = teacher_MV.argsort(-1, descending=True)

    def buckets(probs_MV: Tensor) -> Tensor:
        sorted_MV = probs_MV.gather(-1, order_MV)
        rest_M1 = sorted_MV[:, top_k:].sum(-1, keepdim=True)
        return torch.cat([sorted_MV[:, :top_k], rest_M1], dim=-1)

    return buckets(student_MV), buckets(teacher_MV)


def _softmax(logits_MV: Tensor) -> Tensor:
    return logits_MV.exp() / logits_MV.exp().sum(-1, keepdim=True)


def _kl(p_MV: Tensor, q_MV: Tensor) -> Tensor:
    """Summed over positions."""
    return (p_MV * (p_MV / q_MV).log()).sum()


def _gathered(loss: Tensor, denoiser: Denoiser) -> LossAndGradient:
    gradient = {}
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        gradient[name] = parameter.grad.clone()
    return LossAndGradient(loss=float(loss.detach()), gradient=gradient)
