"""LLaDA-8B (Base, Instruct, 1.5): OLMo's names for what Llama computes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from transformers import LlamaConfig, PreTrainedConfig

from masked_diffusion.families.info import Alignment
from masked_diffusion.families.llama import Llama

REQUIRED_CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "activation_type": ("silu",),
        "alibi": (False,),
        "attention_layer_norm": (False,),
        "bias_for_layer_norm": (False, None),
        "block_type": ("llama",),
        "include_bias": (False,),
        "include_qkv_bias": (False, None),
        "input_emb_norm": (False,),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": (False, None),
        "rope": (True,),
        "scale_logits": (False,),
    }
)
"""Values of the published config's fields under which the model computes what Llama does."""

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "activation_type": "swiglu",
        "alibi": False,
        "attention_dropout": 0.1,
        "attention_layer_norm": False,
        "bias_for_layer_norm": None,
        "block_type": "sequential",
        "bos_token_id": None,
        "embedding_size": None,
        "eos_token_id": None,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "default",
        "layer_norm_with_affine": True,
        "logit_alignment": "aligned",
        "mask_token_id": 126336,
        "mlp_hidden_size": None,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_kv_heads": None,
        "pad_token_id": None,
        "rms_norm_eps": 1e-5,
        "rope": False,
        "rope_theta": 10000.0,
        "scale_logits": False,
        "weight_tying": True,
    }
)
"""What an absent field means to the published code."""

SIZES = ("d_model", "max_sequence_length", "n_heads", "n_layers", "vocab_size")
"""Fields without which there is no model."""


class LLaDA(Llama):
    """A Llama under OLMo's names; raw row p predicts token p. It is saved as model_type llama."""

    family = "llada"
    default_alignment: ClassVar[Alignment] = "aligned"
    default_mask_token_id = 126336
    key_mapping: ClassVar = {
        r"^model\.transformer\.wte\.": "model.embed_tokens.",
        r"^model\.transformer\.ln_f\.": "model.norm.",
        r"^model\.transformer\.ff_out\.": "lm_head.",
        r"^model\.transformer\.blocks\.": "model.layers.",
        r"(?<=\d)\.attn_norm\.": ".input_layernorm.",
        r"(?<=\d)\.q_proj\.": ".self_attn.q_proj.",
        r"(?<=\d)\.k_proj\.": ".self_attn.k_proj.",
        r"(?<=\d)\.v_proj\.": ".self_attn.v_proj.",
        r"(?<=\d)\.attn_out\.": ".self_attn.o_proj.",
        r"(?<=\d)\.ff_norm\.": ".post_attention_layernorm.",
        r"(?<=\d)\.ff_proj\.": ".mlp.gate_proj.",
        r"(?<=\d)\.up_proj\.": ".mlp.up_proj.",
        r"(?<=\d)\.ff_out\.": ".mlp.down_proj.",
    }
    """In this order: the head's name ends like a layer's."""

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Translates the published fields into Llama's; what only training reads is dropped.

        Raises:
            ValueError: a size is missing, or a field asks for what Llama does not compute.
        """
        missing = [name for name in SIZES if values.get(name) is None]
        if missing:
            raise ValueError(f"config.{missing[0]} is missing; a LLaDA config states {SIZES}")
        published = {**DEFAULTS, **values}
        for name, allowed in REQUIRED_CHOICES.items():
            if published[name] not in allowed:
                raise ValueError(
                    f"config.{name} is {published[name]!r}, but LLaDA is served as a Llama, which "
                    f"needs {allowed[0]!r} as in LLaDA-8B; this checkpoint is another architecture"
                )
        config = LlamaConfig(
            vocab_size=published["embedding_size"] or published["vocab_size"],
            hidden_size=published["d_model"],
            intermediate_size=published["mlp_hidden_size"]
            or published["mlp_ratio"] * published["d_model"],
            num_hidden_layers=published["n_layers"],
            num_attention_heads=published["n_heads"],
            num_key_value_heads=published["n_kv_heads"] or published["n_heads"],
            hidden_act="silu",
            max_position_embeddings=published["max_sequence_length"],
            initializer_range=published["init_std"],
            rms_norm_eps=published["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": published["rope_theta"]},
            attention_dropout=published["attention_dropout"],
            tie_word_embeddings=published["weight_tying"],
            bos_token_id=published["bos_token_id"],
            eos_token_id=published["eos_token_id"],
            pad_token_id=published["pad_token_id"],
            dtype=published.get("dtype", published.get("torch_dtype")),
        )
        config.mask_token_id = published["mask_token_id"]
        config.logit_alignment = published["logit_alignment"]
        return config
