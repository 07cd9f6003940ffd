"""GPT-2 as a denoiser: DiffuGPT."""

from typing import ClassVar

from transformers import GPT2Config, GPT2LMHeadModel

from masked_diffusion.families.decoder import CausalDecoder
from masked_diffusion.families.info import Alignment


class GPT2(CausalDecoder):
    """A GPT-2 decoder that attends in both directions; raw row p - 1 predicts token p.

    DiffuGPT is saved by its wrapper: the body as `denoise_model`, the embedding beside it, and the
    tied head once. diffugpt-s took an ordinary id as its mask, 10541, which its training code sets
    by hand: pass mask_token_id. diffugpt-m added a token, and its config still states GPT-2's
    vocabulary.
    """

    family = "gpt2"
    config_class = GPT2Config
    model_class = GPT2LMHeadModel
    default_alignment: ClassVar[Alignment] = "shifted"
    key_mapping: ClassVar = {
        r"^denoise_model\.": "transformer.",
        r"^embed_tokens\.": "transformer.wte.",
    }
    embedding_name = "transformer.wte.weight"
    layer_pattern = r"(?<=\bh\.)\d+(?=\.)"
