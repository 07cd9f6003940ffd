"""What the world may know about a denoiser without touching its weights."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from masked_diffusion.digests import tokenizer_fingerprint

Alignment = Literal["shifted", "aligned"]
Attention = Literal["full", "block_causal"]
Noise = Literal["absorbing", "uniform"]

MASK_TOKEN = "<M>"
"""Name of the added mask token in Open-dCoder's tokenizer, which does not declare it as such."""


@dataclass(frozen=True, kw_only=True)
class DenoiserInfo:
    """Facts about a denoiser that its callers plan with."""

    name: str
    """The path or hub id it was loaded from."""
    family: str
    """Key of the families' table."""
    alignment: Alignment
    """How the checkpoint's raw outputs stand to tokens; the family hides it from every caller."""
    attention: Attention = "full"
    """Which positions see which: all of them, or those of their own block and of earlier ones."""
    block_length: int | None = None
    """Positions of a block; None with full attention."""
    noise: Noise = "absorbing"
    """What the forward process puts in a token's place: the mask id, or any ordinary id."""
    uses_time: bool = False
    """Whether a forward needs the time of its states."""
    mask_token_id: int
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    special_token_ids: tuple[int, ...]
    """Sorted: mask, pad, bos, eos and every special token of the tokenizer."""
    vocab_size: int
    """Real vocabulary: the tokenizer's highest id (or the mask id) + 1."""
    padded_vocab_size: int
    """Rows of the embedding and the head; at least vocab_size."""
    hidden_size: int
    max_length: int
    """Positions that a sequence may have."""
    num_invalid_leading_positions: int
    """Positions at the start of a row whose prediction was never trained: 1 if shifted, else 0."""
    tokenizer_fingerprint: str
    """SHA-256 of the vocabulary; "" without a tokenizer."""
    num_parameters: int


def find_mask_token_id(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    mask_token_id: int | None = None,
    default: int | None = None,
) -> int:
    """Finds the mask id: as given, else the config's, else the tokenizer's, else the family's.

    Raises:
        ValueError: nobody knows it, or it lies outside the embedding.
    """
    candidates = mask_token_candidates(config, tokenizer, default=default).values()
    found = next((c for c in (mask_token_id, *candidates) if c is not None), None)
    if found is None:
        raise ValueError(
            f"{name} has no mask token: neither config.mask_token_id, nor a mask token in the "
            f"tokenizer, nor an added token {MASK_TOKEN!r}; pass mask_token_id, or write it into "
            "config.json"
        )
    if not 0 <= found < config.vocab_size:
        raise ValueError(
            f"mask_token_id of {name} must lie in [0, {config.vocab_size}) (rows of the "
            f"embedding), got {found}"
        )
    return found


def mask_token_candidates(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    default: int | None = None,
) -> dict[str, int | None]:
    """Where a mask id can be found -> the id there, or None; the first that is there holds."""
    added = {} if tokenizer is None else tokenizer.get_added_vocab()
    return {
        "config.mask_token_id": getattr(config, "mask_token_id", None),
        "the tokenizer's mask token": None if tokenizer is None else tokenizer.mask_token_id,
        f"the added token {MASK_TOKEN!r}": added.get(MASK_TOKEN),
        "the family's published id": default,
    }


def find_alignment(config: PreTrainedConfig, *, name: str, default: Alignment) -> Alignment:
    """Reads config.logit_alignment, which our own checkpoints carry, or takes the family's default.

    Raises:
        ValueError: neither "shifted" nor "aligned".
    """
    alignment = getattr(config, "logit_alignment", default)
    if alignment not in get_args(Alignment):
        raise ValueError(
            f"config.logit_alignment of {name} must be one of {', '.join(get_args(Alignment))}, "
            f"got {alignment!r}"
        )
    return cast(Alignment, alignment)


def find_noise(config: PreTrainedConfig, *, name: str) -> Noise:
    """Reads config.noise, which our own checkpoints of uniform diffusion carry.

    Raises:
        ValueError: neither "absorbing" nor "uniform".
    """
    noise = getattr(config, "noise", "absorbing")
    if noise not in get_args(Noise):
        raise ValueError(
            f"config.noise of {name} must be one of {', '.join(get_args(Noise))}, got {noise!r}"
        )
    return cast(Noise, noise)


def describe(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    family: str,
    alignment: Alignment,
    mask_token_id: int,
    max_length: int,
    block_length: int | None,
    uses_time: bool,
    num_parameters: int,
) -> DenoiserInfo:
    """Gathers the facts from a config and its tokenizer, if there is one.

    Raises:
        ValueError: the tokenizer has more ids than the embedding has rows.
    """
    vocab_size = _real_vocab_size(config, tokenizer, mask_token_id)
    if vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} has ids up to {vocab_size - 1}, but the embedding has only "
            f"{config.vocab_size} rows; the tokenizer belongs to another checkpoint"
        )
    pad_token_id = _token_id(config, tokenizer, "pad_token_id")
    bos_token_id = _token_id(config, tokenizer, "bos_token_id")
    eos_token_id = _token_id(config, tokenizer, "eos_token_id")
    named = [mask_token_id, pad_token_id, bos_token_id, eos_token_id]
    return DenoiserInfo(
        name=name,
        family=family,
        alignment=alignment,
        attention="full" if block_length is None else "block_causal",
        block_length=block_length,
        noise=find_noise(config, name=name),
        uses_time=uses_time,
        mask_token_id=mask_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        special_token_ids=_special_token_ids(tokenizer, named),
        vocab_size=vocab_size,
        padded_vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_length=max_length,
        num_invalid_leading_positions=1 if alignment == "shifted" else 0,
        tokenizer_fingerprint="" if tokenizer is None else tokenizer_fingerprint(tokenizer),
        num_parameters=num_parameters,
    )


def _real_vocab_size(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, mask_token_id: int
) -> int:
    if tokenizer is None:
        return int(config.vocab_size)
    return max(*tokenizer.get_vocab().values(), mask_token_id) + 1


def _token_id(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, key: str
) -> int | None:
    """Reads a special id, from the tokenizer if it has one; a list of ends gives its first."""
    token_id = getattr(tokenizer, key, None)
    if token_id is None:
        token_id = getattr(config, key, None)
    return token_id[0] if isinstance(token_id, list) else token_id


def _special_token_ids(
    tokenizer: PreTrainedTokenizerBase | None, named: list[int | None]
) -> tuple[int, ...]:
    special = {token_id for token_id in named if token_id is not None}
    if tokenizer is not None:
        special.update(tokenizer.all_special_ids)
        added = tokenizer.added_tokens_decoder.items()
        special.update(token_id for token_id, token in added if token.special)
    return tuple(sorted(special))
