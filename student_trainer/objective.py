"""The student and its loss as one module, so that data parallelism sees every parameter used."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masked_diffusion.families import Denoiser, padding_mask
from student_trainer import losses
from student_trainer.states import StateBatch


@dataclass(frozen=True, eq=False)
class Objective:
    """Contribution of one batch of states; all divided by the global normaliser."""

    total: Tensor
    ce: float
    kd: float


class DistillationObjective(nn.Module):
    """Runs the student on the states and applies the loss at the positions that carry it."""

    def __init__(
        self, denoiser: Denoiser, config: losses.LossConfig, *, mixed_precision: bool = False
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._config = config
        self._mixed_precision = mixed_precision
        self._vocabulary = losses.Vocabulary(
            vocab_size=denoiser.info.vocab_size, mask_token_id=denoiser.info.mask_token_id
        )

    def forward(self, batch: StateBatch, normalizer: float) -> Objective:
        """Computes the loss of one batch of states.

        Args:
            normalizer: the global count of `losses.normalizer_count`; > 0.
        """
        device = self.denoiser.device
        hidden_MD = self._hidden_states(batch)[batch.loss_BL.to(device)]
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
        )
        return Objective(
            parts.total,
            0.0 if parts.ce is None else float(parts.ce),
            0.0 if parts.kd is None else float(parts.kd),
        )

    def _hidden_states(self, batch: StateBatch) -> Tensor:
        device = self.denoiser.device
        xt_BL = batch.xt_BL.to(device)
        mask_BL = padding_mask(batch.lengths_B, xt_BL.shape[1])
        is_blocked = self.denoiser.info.attention == "block_causal"
        clean_BL = batch.clean_BL if is_blocked else None
        with torch.autocast(device.type, torch.bfloat16, enabled=self._mixed_precision):
            return self.denoiser(
                xt_BL,
                None if mask_BL is None else mask_BL.to(device),
                clean_ids_BL=None if clean_BL is None else clean_BL.to(device),
                times_B=batch.t_B.to(device) if self.denoiser.info.uses_time else None,
            )

    def _weights(self, batch: StateBatch) -> Tensor:
        counts_B = batch.loss_BL.sum(-1)
        t_M = batch.t_B.repeat_interleave(counts_B)
        row_length_M = batch.num_maskable_B.repeat_interleave(counts_B)
        return losses.position_weights(t_M, row_length_M, self._config)
