"""Block diffusion: positions see their own block and the blocks before it."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from masked_diffusion.families import block_masks
from masked_diffusion.families.decoder import CausalDecoder

BLOCK_LENGTH_FIELDS = ("block_length", "block_size", "bd_size")
"""Fields of config.json that give it, the first that is there counts: ours, then SDAR's and
BD3LM's, then Fast-dLLM's."""


def config_block_length(config: PreTrainedConfig) -> int | None:
    """Reads the positions of a block from a config; None where it names none.

    Raises:
        ValueError: not positive.
    """
    for field in BLOCK_LENGTH_FIELDS:
        value = getattr(config, field, None)
        if value is not None:
            if int(value) < 1:
                raise ValueError(f"config.{field} must be at least 1, got {value}")
            return int(value)
    return None


class BlockDenoiser(CausalDecoder):
    """A decoder of transformers whose attention goes by blocks, on one absolute grid.

    A state alone is run block-causally: right for sampling, where the blocks before the one being
    filled hold no masks. With its clean ids it is run as in training: each block sees itself
    noised and the blocks before it clean. Where every earlier block holds no mask the two agree.
    """

    default_block_length: ClassVar[int | None] = None
    """Of published checkpoints whose config names none."""

    @classmethod
    def block_length(cls, config: PreTrainedConfig) -> int | None:
        """Reads the positions of a block."""
        return config_block_length(config) or cls.default_block_length

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """Turns causality off and writes the block length down, so that both are saved.

        Raises:
            ValueError: no block length, or sliding-window layers.
        """
        super().prepare_config(config)
        block_length = cls.block_length(config)
        if block_length is None:
            raise ValueError(
                f"a {cls.family} checkpoint needs a block length, and its config names none "
                f"({', '.join(BLOCK_LENGTH_FIELDS)}); pass block_length"
            )
        config.block_length = block_length

    @property
    def body(self) -> PreTrainedModel:
        """The decoder below the head."""
        return cast(PreTrainedModel, cast(Any, self.model).model)

    def enable_ragged(self) -> bool:
        """Never: such rows attend to all of themselves, with no block's border."""
        return False

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        seen_BLL = block_masks.block_causal(
            _real(input_ids_BL, attention_mask_BL), block_length=self._block_length
        )
        return self._run(input_ids_BL, seen_BLL, _positions(input_ids_BL))

    @property
    def packing_obstacle(self) -> str | None:
        return f"the family {self.family} attends by blocks, which are counted from a row's start"

    def raw_two_stream_hidden_states(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, clean_ids_BL: Tensor
    ) -> Tensor:
        seen = block_masks.two_stream(
            _real(input_ids_BL, attention_mask_BL), block_length=self._block_length
        )
        positions_BL = _positions(input_ids_BL)
        both_BLD = self._run(
            torch.cat([input_ids_BL, clean_ids_BL], dim=1),
            seen,
            torch.cat([positions_BL, positions_BL], dim=1),
        )
        return both_BLD[:, : input_ids_BL.shape[1]]

    def run_span(
        self,
        input_ids_BS: Tensor,
        seen_BSK: Tensor,
        positions_BS: Tensor,
        past: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Runs new positions behind cached keys and values.

        Args:
            input_ids_BS: [B, S] int64.
            seen_BSK: [B, S, P + S] bool, see `block_masks.block_span`.
            positions_BS: [B, S] int64 positions within the sequences.
            past: Per layer, keys and values [B, heads, P, head size]; empty for P = 0.

        Returns:
            [B, S, D] raw hidden states, and per layer the keys and values of the S new positions.
        """
        # Rotary embedding comes before the cache, so padding between a row's cached positions and
        # its span shifts nothing.
        cache = DynamicCache(past or None)
        num_past = past[0][0].shape[2] if past else 0
        hidden_BSD = self._run(input_ids_BS, seen_BSK, positions_BS, cache)
        layers = [
            (layer.keys[:, :, num_past:], layer.values[:, :, num_past:])
            for layer in cast(Any, cache).layers
        ]
        return hidden_BSD, layers

    @property
    def _block_length(self) -> int:
        assert self.info.block_length is not None
        return self.info.block_length

    def _run(
        self,
        ids: Tensor,
        seen: Tensor,
        positions: Tensor,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        output = self.body(
            input_ids=ids,
            attention_mask=block_masks.additive(seen, self.body.dtype),
            position_ids=positions,
            use_cache=cache is not None,
            **({} if cache is None else {_cache_argument(self.body): cache}),
        )
        return cast(Tensor, output.last_hidden_state)


def _cache_argument(body: PreTrainedModel) -> str:
    """What a decoder calls its cache: transformers 5.24 renamed it."""
    is_renamed = "cache" in inspect.signature(body.forward).parameters
    return "cache" if is_renamed else "past_key_values"


def _real(input_ids_BL: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    if attention_mask_BL is None:
        return torch.ones_like(input_ids_BL, dtype=torch.bool)
    return attention_mask_BL.bool()


def _positions(input_ids_BL: Tensor) -> Tensor:
    length = input_ids_BL.shape[1]
    return torch.arange(length, device=input_ids_BL.device).expand(len(input_ids_BL), length)


def refuse_fields(values: Mapping[str, Any], *, name: str, allowed: Mapping[str, Any]) -> None:
    """Refuses a published config that asks for what the model's class cannot do.

    Args:
        values: Of config.json.
        name: Of the model_type.
        allowed: Field -> the only value it may have where it is given.

    Raises:
        ValueError: naming the first such field.
    """
    for field, value in allowed.items():
        if values.get(field, value) not in (value, None):
            raise ValueError(
                f"{field} of a {name} checkpoint must be {value!r}, got {values[field]!r}: "
                "its layers are not implemented"
            )
