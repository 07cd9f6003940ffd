"""Everything about a checkpoint but its weights: read first, and enough to plan with."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from masked_diffusion import pretrained
from masked_diffusion.families import Denoiser
from masked_diffusion.families.info import Alignment, find_mask_token_id, mask_token_candidates
from masked_diffusion.published_config import read_published_config

AlignmentSource = Literal["given", "config", "family", "unknown"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Blueprint:
    """How a checkpoint is to be loaded and called."""

    name: str
    """The path or hub id."""
    family: type[Denoiser]
    config: PreTrainedConfig
    """As adjusted by the family, with mask id and alignment."""
    tokenizer: PreTrainedTokenizerBase | None
    mask_token_id: int
    mask_token_source: str
    """Where the mask id was found."""
    alignment_source: AlignmentSource
    """Where the alignment was found; "unknown" where only a trained model can tell."""

    def build_on_meta(self) -> Denoiser:
        """Builds the denoiser without weights: shapes and facts, no memory, no forward."""
        with torch.device("meta"):
            model = self.family.model_class(self.config)
        model.tie_weights()
        return self.family(
            model, self.tokenizer, name=self.name, mask_token_id=self.mask_token_id
        ).eval()


def read_blueprint(
    model: str,
    *,
    trust_remote_code: bool = False,
    mask_token_id: int | None = None,
    alignment: Alignment | None = None,
    block_length: int | None = None,
) -> Blueprint:
    """Reads config and tokenizer of a folder or hub id; the arguments are `load_denoiser`'s.

    Raises:
        ValueError: no such folder or hub id, unknown model_type, no mask id.
    """
    model = os.path.expanduser(model)
    values = pretrained.read_config_dict(model)
    family, config = read_published_config(
        model, trust_remote_code=trust_remote_code, block_length=block_length
    )
    tokenizer = pretrained.load_tokenizer(model, config, trust_remote_code=trust_remote_code)
    candidates = {
        "given": mask_token_id,
        **mask_token_candidates(config, tokenizer, default=family.default_mask_token_id),
    }
    found = find_mask_token_id(
        config,
        tokenizer,
        name=model,
        mask_token_id=mask_token_id,
        default=family.default_mask_token_id,
    )
    source: AlignmentSource = "unknown" if family.default_alignment is None else "family"
    if alignment is not None:
        config.logit_alignment = alignment
        source = "given"
    elif "logit_alignment" in values:
        source = "config"
    if block_length is not None:
        config.block_length = block_length
        if family.block_length(config) is None:
            raise ValueError(
                f"block_length is {block_length}, but the family {family.family!r} of {model} has "
                "full attention, which knows no blocks; leave it out"
            )
    family.prepare_config(config)
    return Blueprint(
        name=model,
        family=family,
        config=config,
        tokenizer=tokenizer,
        mask_token_id=found,
        mask_token_source=next(n for n, token_id in candidates.items() if token_id is not None),
        alignment_source=source,
    )
