"""MDLM's network as an ordinary transformers model, known to its Auto classes."""

import math

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput

from masked_diffusion.families.dit import (
    ClosedLinear,
    DiTBackbone,
    LayerNorm,
    Rotary,
    VocabularyEmbedding,
)
from masked_diffusion.families.mdlm_config import MdlmConfig


class MdlmForMaskedLM(PreTrainedModel):
    """The network with its head; raw logits, the mask id's own included."""

    config_class = MdlmConfig
    config: MdlmConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: MdlmConfig) -> None:
        super().__init__(config)
        self.backbone = DiTBackbone(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Gives logits [B, L, V].

        Args:
            timesteps: [B] noise levels sigma, under their published name; read only with
                config.time_conditioning.
            attention_mask: [B, L], true for real positions.
        """
        hidden_BLD = self.hidden_states(input_ids, attention_mask, timesteps)
        return MaskedLMOutput(logits=self.backbone.output_layer.linear(hidden_BLD))

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, sigma_B: Tensor | None
    ) -> Tensor:
        """[B, L, D] after the last norm.

        Raises:
            ValueError: config.time_conditioning without a noise level.
        """
        if not self.config.time_conditioning:
            sigma_B = torch.zeros(len(input_ids), device=input_ids.device)
        elif sigma_B is None:
            raise ValueError(
                "timesteps must be given, got None: config.time_conditioning is true, so the "
                "network needs the noise level of each sequence"
            )
        hidden_BLD: Tensor = self.backbone(input_ids, attention_mask, sigma_B)
        return hidden_BLD

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.vocab_embed

    def get_output_embeddings(self) -> nn.Linear:
        return self.backbone.output_layer.linear

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As published: torch's own, but what modulates and predicts begins at zero."""
        if isinstance(module, ClosedLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_features)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, VocabularyEmbedding):
            init.kaiming_uniform_(module.embedding, a=math.sqrt(5))
        elif isinstance(module, Rotary):
            init.copy_(module.inv_freq, module.frequencies())


AutoConfig.register("mdlm", MdlmConfig)
AutoModelForMaskedLM.register(MdlmConfig, MdlmForMaskedLM)
