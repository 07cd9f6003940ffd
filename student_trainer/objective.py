"""The student and its loss as one module, so that data parallelism sees every parameter used."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from masked_diffusion.families import Denoiser, padding_mask
from student_trainer import losses
from student_trainer.packing import pack
from student_trainer.states import StateBatch


class Objective(NamedTuple):
    """Contribution of one batch of states; all divided by the global normaliser.

    A tuple, since FSDP looks for the tensors in what a module returns and knows those.
    """

    total: Tensor
    ce: float
    kd: float
    by_time: list[float]
    """Of `LossParts.by_time`; not divided."""


class DistillationObjective(nn.Module):
    """Runs the student on the states and applies the loss at the positions that carry it."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: losses.LossConfig,
        *,
        mixed_precision: bool = False,
        device: torch.device | None = None,
        packed_row_tokens: int | None = None,
    ) -> None:
        """Takes the student as it is.

        Args:
            device: where to compute, since offloaded weights lie elsewhere; None = where they are.
            packed_row_tokens: the student runs on rows of at most so many tokens that hold several
                sequences each; None = one padded row a sequence.
        """
        super().__init__()
        self.denoiser = denoiser
        self._device = device or denoiser.device
        self._config = config
        self._mixed_precision = mixed_precision
        self._packed_row_tokens = packed_row_tokens
        self._vocabulary = losses.Vocabulary(
            vocab_size=denoiser.info.vocab_size, mask_token_id=denoiser.info.mask_token_id
        )

    def normalizer_share(self, batch: StateBatch) -> int:
        """What a batch adds to the normaliser.

        Gradients are right when every batch is divided by the sum over all batches of an optimizer
        step, those of other ranks included: a mean of means weighs short batches too much.
        """
        return losses.normalizer_count(
            self._config,
            num_masked=batch.num_masked,
            num_tokens=int(batch.num_maskable_B.sum()),
            num_sequences=len(batch.lengths_B),
        )

    def forward(self, batch: StateBatch, normalizer: float) -> Objective:
        """Computes the loss of one batch of states.

        Args:
            batch: with targets, unless alpha is 0.
            normalizer: the sum of `normalizer_share` over the optimizer step; > 0.
        """
        device = self._device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._mixed_precision):
            hidden_MD = (
                self._hidden_states(batch)
                if self._packed_row_tokens is None
                else self._packed_hidden_states(batch, self._packed_row_tokens)
            )
        parts = losses.distillation_loss(
            hidden_MD,
            self.denoiser.head_weight,
            self.denoiser.head_bias,
            vocabulary=self._vocabulary,
            labels_M=batch.labels_M.to(device),
            weights_M=self._weights(batch).to(device),
            targets=batch.targets,
            config=self._config,
            normalizer=normalizer,
            t_M=_per_position(batch.t_B, batch).to(device),
        )
        return Objective(
            parts.total,
            0.0 if parts.ce is None else float(parts.ce),
            0.0 if parts.kd is None else float(parts.kd),
            parts.by_time.tolist(),
        )

    def _hidden_states(self, batch: StateBatch) -> Tensor:
        device = self._device
        xt_BL = batch.xt_BL.to(device)
        mask_BL = padding_mask(batch.lengths_B, xt_BL.shape[1])
        is_blocked = self.denoiser.info.attention == "block_causal"
        clean_BL = batch.clean_BL if is_blocked else None
        hidden_BLD: Tensor = self.denoiser(
            xt_BL,
            None if mask_BL is None else mask_BL.to(device),
            clean_ids_BL=None if clean_BL is None else clean_BL.to(device),
            times_B=batch.t_B.to(device) if self.denoiser.info.uses_time else None,
        )
        return hidden_BLD[batch.loss_BL.to(device)]

    def _packed_hidden_states(self, batch: StateBatch, row_tokens: int) -> Tensor:
        """The same from packed rows."""
        rows = pack(batch.xt_BL, batch.lengths_B, row_tokens=row_tokens)
        hidden_RLD: Tensor = self.denoiser(
            rows.input_ids_RL.to(self._device),
            document_ids_BL=rows.document_ids_RL.to(self._device),
        )
        return hidden_RLD.flatten(0, 1)[rows.places_BL[batch.loss_BL].to(self._device)]

    def _weights(self, batch: StateBatch) -> Tensor:
        return losses.position_weights(
            _per_position(batch.t_B, batch),
            _per_position(batch.num_maskable_B, batch),
            self._config,
        )


def _per_position(values_B: Tensor, batch: StateBatch) -> Tensor:
    """[M]: what its row has, for every position with a loss."""
    return values_B.repeat_interleave(batch.loss_BL.sum(-1))
