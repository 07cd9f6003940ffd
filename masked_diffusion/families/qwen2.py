"""Qwen2 as a denoiser: Open-dCoder checkpoints, with transformers' own classes."""

from typing import ClassVar, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM

from masked_diffusion.families.base import Denoiser
from masked_diffusion.families.info import Alignment


class Qwen2(Denoiser):
    """A Qwen2 decoder that attends in both directions; raw row p - 1 predicts token p."""

    family = "qwen2"
    config_class = Qwen2Config
    model_class = Qwen2ForCausalLM
    default_alignment: ClassVar[Alignment] = "shifted"

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """Turns causality off, for good: it is saved with the config.

        The call argument of the same name writes the shared config during the call, so it is not
        safe between threads; setting the modules' flags has no effect on padded batches.

        Raises:
            ValueError: sliding-window layers, which do not see the whole sequence.
        """
        if "sliding_attention" in (cast(Qwen2Config, config).layer_types or []):
            raise ValueError(
                "use_sliding_window must be false: a denoiser attends to the whole sequence"
            )
        config.is_causal = False

    @property
    def head_weight(self) -> nn.Parameter:
        return cast(nn.Parameter, cast(Qwen2ForCausalLM, self.model).lm_head.weight)

    @property
    def head_bias(self) -> Tensor | None:
        return None

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        body = cast(Qwen2ForCausalLM, self.model).model
        output = body(input_ids=input_ids_BL, attention_mask=attention_mask_BL, use_cache=False)
        return cast(Tensor, output.last_hidden_state)
