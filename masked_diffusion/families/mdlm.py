"""MDLM: the small diffusion transformer of kuleshov-group/mdlm-owt, without its remote code."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from masked_diffusion.families import document_masks
from masked_diffusion.families.base import Denoiser
from masked_diffusion.families.info import Alignment
from masked_diffusion.families.mdlm_config import MdlmConfig
from masked_diffusion.families.mdlm_model import MdlmForMaskedLM

SIGMA_EPS = 1e-3
"""Share of a token that is left at t = 1, so that the noise level stays finite."""


def noise_level(times_B: Tensor) -> Tensor:
    """Gives sigma = -log(1 - (1 - eps) t), the total noise of the log-linear schedule.

    Source: Sahoo et al., arXiv:2406.07524 (log-linear schedule).
    """
    return -torch.log1p(-(1 - SIGMA_EPS) * times_B)


class Mdlm(Denoiser):
    """A DiT whose row p predicts token p, conditioned on the time where its config says so.

    The SUBS parameterisation is what every denoiser has here: the mask is never predicted, and
    nobody asks about an unmasked position.
    """

    family = "mdlm"
    config_class = MdlmConfig
    model_class = MdlmForMaskedLM
    default_alignment: ClassVar[Alignment] = "aligned"
    layer_pattern = r"(?<=\bblocks\.)\d+(?=\.)"

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Reads the published fields; what points to remote code is left out.

        Raises:
            ValueError: a causal network, as the autoregressive baselines of the same code are.
        """
        if values.get("causal"):
            raise ValueError(
                "causal must be false, got true: this is the autoregressive baseline, which cannot "
                "denoise"
            )
        return super().read_config({k: v for k, v in values.items() if k != "auto_map"})

    @classmethod
    def uses_time(cls, config: PreTrainedConfig) -> bool:
        return cast(MdlmConfig, config).time_conditioning

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """The network attends in both directions whatever the config says, so this is for others.

        Raises:
            ValueError: heads that do not divide the width, or cannot be rotated.
        """
        mdlm = cast(MdlmConfig, config)
        if mdlm.hidden_dim % (2 * mdlm.n_heads):
            raise ValueError(
                f"hidden_dim must be a multiple of twice n_heads, got {mdlm.hidden_dim} and "
                f"{mdlm.n_heads}"
            )
        config.is_causal = False

    @property
    def _head(self) -> nn.Linear:
        return cast(MdlmForMaskedLM, self.model).backbone.output_layer.linear

    @property
    def head_weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self._head.weight)

    @property
    def head_bias(self) -> Tensor | None:
        return self._head.bias

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        """Runs the body.

        Raises:
            ValueError: no times for a body that is conditioned on them.
        """
        if self.info.uses_time and times_B is None:
            raise ValueError(
                f"times_B must be given, got None: {self.info.name} is conditioned on the time of "
                "its states"
            )
        sigma_B = None if times_B is None else noise_level(times_B).to(input_ids_BL.device)
        model = cast(MdlmForMaskedLM, self.model)
        return model.hidden_states(input_ids_BL, attention_mask_BL, sigma_B)

    @property
    def packing_obstacle(self) -> str | None:
        return "every row has one time, its documents have several" if self.info.uses_time else None

    def raw_packed_hidden_states(self, input_ids_BL: Tensor, document_ids_BL: Tensor) -> Tensor:
        # Positions are rotated, so only their differences count, which are those of the row.
        model = cast(MdlmForMaskedLM, self.model)
        return model.hidden_states(
            input_ids_BL, document_masks.same_document(document_ids_BL), None
        )
