"""What the decoders share: transformers' own causal classes with the attention opened."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedConfig

from masked_diffusion.families import document_masks, ragged
from masked_diffusion.families.base import Denoiser

REMOTE_CODE_FIELDS = frozenset({"architectures", "auto_map", "model_type"})
"""Name the classes of a published repository, which are not the ones that are used."""


class CausalDecoder(Denoiser):
    """A decoder-only model without its causal mask.

    A family names its classes, its alignment and, where the published names differ from
    transformers' own, how config and tensors are read.
    """

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Reads the fields that transformers has under the same names.

        The alignment is written into the config, for it may be saved under the model_type of
        `config_class`, which has another default.
        """
        kept = {name: value for name, value in values.items() if name not in REMOTE_CODE_FIELDS}
        config: PreTrainedConfig = cls.config_class.from_dict(kept)
        if getattr(config, "logit_alignment", None) is None:
            config.logit_alignment = cls.default_alignment
        return config

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """Turns causality off, for good: it is saved with the config.

        The call argument of the same name writes the shared config during the call, so it is not
        safe between threads; setting the modules' flags has no effect on padded batches.

        Raises:
            ValueError: sliding-window layers, which do not see the whole sequence.
        """
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        if layer_types != {"full_attention"}:
            other = sorted(layer_types - {"full_attention"})[0]
            raise ValueError(
                f"config.layer_types has {other!r}, but a denoiser attends to the whole sequence: "
                "use_sliding_window must be false and every layer 'full_attention'"
            )
        config.is_causal = False

    @property
    def head_weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.model.get_output_embeddings().weight)

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
        body = self.model.base_model
        output = body(input_ids=input_ids_BL, attention_mask=attention_mask_BL, use_cache=False)
        return cast(Tensor, output.last_hidden_state)

    @property
    def packing_obstacle(self) -> str | None:
        return None

    def raw_packed_hidden_states(self, input_ids_BL: Tensor, document_ids_BL: Tensor) -> Tensor:
        body = self.model.base_model
        output = body(
            input_ids=input_ids_BL,
            attention_mask=document_masks.additive(
                document_masks.same_document(document_ids_BL), self.model.dtype
            ),
            position_ids=document_masks.positions_in_documents(document_ids_BL),
            use_cache=False,
        )
        return cast(Tensor, output.last_hidden_state)

    def enable_ragged(self) -> bool:
        return ragged.enable(self.model)

    def ragged_hidden_states(self, input_ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        output = self.model.base_model(
            input_ids=input_ids_T[None],
            position_ids=ragged.position_ids(lengths, device=input_ids_T.device)[None],
            use_cache=False,
            row_lengths=lengths,
        )
        hidden_TD = cast(Tensor, output.last_hidden_state)[0]
        if self.info.alignment == "aligned":
            return hidden_TD
        return hidden_TD[ragged.shifted_rows(lengths, device=hidden_TD.device)]
