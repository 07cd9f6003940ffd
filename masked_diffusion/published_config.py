"""A published folder's config, as its family reads it."""

from transformers import PreTrainedConfig

from masked_diffusion import pretrained
from masked_diffusion.families import Denoiser, find_family
from masked_diffusion.tensor_files import open_tensors


def read_published_config(
    model: str, *, trust_remote_code: bool = False, block_length: int | None = None
) -> tuple[type[Denoiser], PreTrainedConfig]:
    """Reads the config.json of a folder or hub id.

    Where a family says so, the vocabulary's size is what the embedding has rows, and not what the
    config says: some publishers added the mask token after the config was written.

    Raises:
        ValueError: it cannot be read, its model_type is unknown, or its family cannot serve it.
    """
    values = pretrained.read_config_dict(model)
    family = find_family(
        values, model, trust_remote_code=trust_remote_code, block_length=block_length
    )
    config = family.read_config(values)
    if family.embedding_name is not None and (rows := _num_rows(model, family)):
        config.vocab_size = rows
    return family, config


def _num_rows(model: str, family: type[Denoiser]) -> int | None:
    """Rows of the embedding on disk; None in a folder without weights, such as a student's."""
    try:
        shapes = open_tensors(model, family.key_mapping).shapes
    except ValueError:
        return None
    return next(
        (shapes[n][0] for n in (family.embedding_name, "lm_head.weight") if n in shapes), None
    )
