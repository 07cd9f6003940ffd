"""A loss on top of a linear head whose logits never exist for all positions at once.

Logits of M positions and V ids are the largest tensor of a training step by far (2048 positions of
a vocabulary of 151,936 take 1.2 GB in float32, several times over with what autograd keeps). Here
they are formed for one chunk of positions, turned into loss and gradient at once, and dropped.

Source: the fused linear cross-entropy of Hsu et al. (Liger Kernel), arXiv:2410.10989.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from student_trainer.distributions import LOG_ZERO, Vocabulary


@dataclass(frozen=True, eq=False)
class ChunkLoss:
    """Sums over one chunk of positions: one to minimise and the detached parts to report."""

    objective: Tensor
    """Scalar; differentiable with respect to the chunk's logits."""
    parts: Tensor
    """[P], detached."""


LossOfChunk = Callable[[Tensor, slice], ChunkLoss]
"""Given the logits [m, vocab_size] of some rows (float32 or float64; the mask id is LOG_ZERO)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkPlan:
    """What to compute on each chunk of positions, and how large a chunk may be."""

    loss: LossOfChunk
    num_parts: int
    vocabulary: Vocabulary
    max_chunk_elements: int
    """Positions times vocabulary; at least one position is always taken."""
    divisor: float = 1.0
    """Of the objective. Dividing afterwards would scale every gradient, which takes a copy."""


def chunked_linear_loss(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, plan: ChunkPlan
) -> ChunkLoss:
    """Sums a loss over all positions, holding the logits of one chunk at a time.

    Gradients are formed in the forward pass, so a call costs about as much as forward and backward
    together, and `backward` only hands them over (scaled, where what comes in is not 1); under
    `torch.no_grad` they are left out. Matrix products run in the wider dtype of hidden and weight,
    everything else in at least float32. The mask's row and rows past the vocabulary are neither
    read nor given a gradient.

    Returns:
        `objective` connected to hidden, weight and bias (also without a single position, so that
        every rank of a data-parallel group takes part in the reduction); `parts` detached.
    """
    if not torch.is_grad_enabled():
        # Autograd reports what inputs require whether or not it is recording.
        hidden_MD, weight_VD = hidden_MD.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    with torch.autocast(hidden_MD.device.type, enabled=False):
        objective, parts = _ChunkedLinearLoss.apply(hidden_MD, weight_VD, bias_V, plan)
    return ChunkLoss(objective, parts)


class _Context(Protocol):
    """What autograd passes as ctx, as far as it is used here; torch leaves it untyped."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor | None, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _ChunkedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        plan: ChunkPlan,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden_MD, weight_VD, bias_V, plan.vocabulary)
        with_gradients = any(ctx.needs_input_grad)
        gradients = _Gradients(head, ctx.needs_input_grad[:3])
        objective = torch.zeros((), dtype=head.dtype, device=hidden_MD.device)
        parts = torch.zeros(plan.num_parts, dtype=head.dtype, device=hidden_MD.device)
        for rows in _chunks(hidden_MD.shape[0], plan):
            logits_MV = head.logits(rows).requires_grad_(with_gradients)
            with torch.enable_grad():
                loss = plan.loss(logits_MV, rows)
                objective_of_chunk = loss.objective / plan.divisor
            objective += objective_of_chunk.detach()
            parts += loss.parts
            if with_gradients:
                gradients.add(rows, *torch.autograd.grad(objective_of_chunk, logits_MV))
        ctx.save_for_backward(*gradients.finish())
        ctx.mark_non_differentiable(parts)
        return objective, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_objective: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if grad_objective == 1.0:
            # As they are: autograd lets go of them with the graph, so that the head's gradient,
            # 0.5 GB for V = 151,936 and D = 896, is never held twice.
            return (*ctx.saved_tensors, None)
        # Not in place: the same graph may be walked twice (retain_graph).
        gradients = [None if g is None else g * grad_objective for g in ctx.saved_tensors]
        return (*gradients, None)


class _Head:
    """The student's output projection on the support: logits chunk by chunk."""

    def __init__(
        self, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, vocabulary: Vocabulary
    ) -> None:
        self.hidden_MD, self.weight_VD, self.bias_V = hidden_MD, weight_VD, bias_V
        self.matmul_dtype = torch.promote_types(hidden_MD.dtype, weight_VD.dtype)
        self.dtype = torch.promote_types(self.matmul_dtype, torch.float32)
        self.vocabulary = vocabulary
        # Around the mask's row, not through it: in the backward product 0 * nan would be nan.
        mask = vocabulary.mask_token_id
        spans = [slice(0, mask), slice(mask + 1, vocabulary.vocab_size)]
        self.spans = [span for span in spans if span.start < span.stop]
        self.matmul_weight_VD = weight_VD.to(self.matmul_dtype)

    def hidden(self, rows: slice) -> Tensor:
        return self.hidden_MD[rows].to(self.matmul_dtype)

    def logits(self, rows: slice) -> Tensor:
        hidden_MD = self.hidden(rows)
        shape = (hidden_MD.shape[0], self.vocabulary.vocab_size)
        logits_MV = torch.empty(shape, dtype=self.dtype, device=hidden_MD.device)
        for span in self.spans:
            bias_V = None if self.bias_V is None else self.bias_V[span].to(self.matmul_dtype)
            logits_MV[:, span] = F.linear(hidden_MD, self.matmul_weight_VD[span], bias_V)
        logits_MV[:, self.vocabulary.mask_token_id] = LOG_ZERO
        return logits_MV


class _Gradients:
    """Gradients of the objective for those of hidden, weight and bias that need one."""

    def __init__(self, head: _Head, needs: tuple[bool, ...]) -> None:
        self._head = head
        needs_hidden, needs_weight, needs_bias = needs
        self._hidden_MD = torch.zeros_like(head.hidden_MD) if needs_hidden else None
        # Accumulated over chunks, so in the wide dtype whatever the parameter's.
        self._weight_VD = self._zeros(head.weight_VD) if needs_weight else None
        self._bias_V = self._zeros(head.bias_V) if needs_bias and head.bias_V is not None else None

    def add(self, rows: slice, logits_MV: Tensor) -> None:
        hidden_MD = self._head.hidden(rows)
        for span in self._head.spans:
            logits_MS = logits_MV[:, span]
            narrow_MS = logits_MS.to(self._head.matmul_dtype)
            if self._hidden_MD is not None:
                self._hidden_MD[rows] += narrow_MS @ self._head.matmul_weight_VD[span]
            if self._weight_VD is not None:
                _add_product(self._weight_VD[span], narrow_MS.T, hidden_MD)
            if self._bias_V is not None:
                self._bias_V[span] += logits_MS.sum(0)

    def finish(self) -> list[Tensor | None]:
        """The gradients of hidden, weight and bias, each in the dtype of what it belongs to."""
        return [
            self._hidden_MD,
            None if self._weight_VD is None else self._weight_VD.to(self._head.weight_VD.dtype),
            None
            if self._bias_V is None or self._head.bias_V is None
            else self._bias_V.to(self._head.bias_V.dtype),
        ]

    def _zeros(self, parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter, dtype=self._head.dtype)


def _add_product(sum_VD: Tensor, left_VM: Tensor, right_MD: Tensor) -> None:
    if sum_VD.dtype == left_VM.dtype:
        sum_VD.addmm_(left_VM, right_MD)
    else:
        sum_VD += left_VM @ right_MD


def _chunks(num_positions: int, plan: ChunkPlan) -> Iterator[slice]:
    num_rows = max(1, plan.max_chunk_elements // plan.vocabulary.vocab_size)
    for start in range(0, num_positions, num_rows):
        yield slice(start, min(start + num_rows, num_positions))
