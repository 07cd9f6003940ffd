"""LLaDA2.0 and 2.1 (Bailing's layers with experts), with the layers of GLM-4-MoE.

The two agree in everything that a published LLaDA2 config asks for: norms of queries and keys
before a partial rotary embedding, a sigmoid router whose bias only chooses (the best groups by
their two best experts, then the best experts in them), normalised and scaled weights, shared
experts, dense first layers. Only names differ, and queries, keys and values are one matrix.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedConfig,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from masked_diffusion.families.block import BlockDenoiser, refuse_fields
from masked_diffusion.families.info import Alignment


class Llada2MoeConfig(Glm4MoeConfig):
    """GLM-4-MoE's fields under LLaDA2's model_type; LLaDA2's own names are read too."""

    model_type = "llada2_moe"
    attribute_map: ClassVar[dict[str, str]] = {
        **Glm4MoeConfig.attribute_map,
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
        "use_qkv_bias": "attention_bias",
    }


class Llada2MoeForCausalLM(Glm4MoeForCausalLM):
    """GLM-4-MoE's layers."""

    config_class = Llada2MoeConfig


# Read on loading and reversed on saving, so that a saved folder has the published names again.
register_checkpoint_conversion_mapping(
    Llada2MoeConfig.model_type,
    [
        WeightRenaming(r"word_embeddings", "embed_tokens"),
        WeightRenaming(r"\.attention\.dense\.", ".self_attn.o_proj."),
        WeightRenaming(r"\.attention\.query_layernorm\.", ".self_attn.q_norm."),
        WeightRenaming(r"\.attention\.key_layernorm\.", ".self_attn.k_norm."),
        WeightRenaming(r"\.mlp\.gate\.expert_bias", ".mlp.gate.e_score_correction_bias"),
        WeightConverter(
            source_patterns="attention.query_key_value",
            target_patterns=["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            operations=[Split(dim=0)],
        ),
        *get_checkpoint_conversion_mapping("glm4_moe"),
    ],
    overwrite=True,
)


AutoConfig.register(Llada2MoeConfig.model_type, Llada2MoeConfig)
AutoModelForCausalLM.register(Llada2MoeConfig, Llada2MoeForCausalLM)


class Llada2Moe(BlockDenoiser):
    """LLaDA2.0-mini/flash and 2.1; raw row p predicts token p."""

    family = "llada2_moe"
    converts_tensors = True
    config_class = Llada2MoeConfig
    model_class = Llada2MoeForCausalLM
    default_alignment: ClassVar[Alignment] = "aligned"
    default_mask_token_id = 156895
    default_block_length = 32

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Reads LLaDA2's fields.

        Raises:
            ValueError: a router, a norm or a bias that its published code does not have.
        """
        refuse_fields(
            values,
            name=cls.family,
            allowed={
                "score_function": "sigmoid",
                "use_bias": False,
                "norm_head": False,
                "use_sliding_window": False,
                "moe_router_enable_expert_bias": True,
                "norm_topk_prob": True,
            },
        )
        # use_qk_norm and the factor are the published code's defaults; GLM's differ.
        defaults = {
            "use_qk_norm": True,
            "partial_rotary_factor": 0.5,
            "num_nextn_predict_layers": 0,
        }
        return super().read_config({**defaults, **values})
