"""Keys and values of finished blocks, so that a sampling step runs the block at work alone."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from masked_diffusion.families import Denoiser
from masked_diffusion.families.block import BlockDenoiser
from masked_diffusion.families.block_masks import block_span

MAX_CACHE_BYTES = 2**30
"""Of one in-process sampling run."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockRow:
    """A row that takes a sampling step."""

    key: Hashable
    """Names the row from step to step."""
    ids_L: Tensor
    """[L] int64 on the CPU, its state."""
    open_L: Tensor
    """[L] bool on the CPU: masked positions that are still to be filled."""
    needed_L: Tensor
    """[L] bool on the CPU: where the step needs hidden states."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockCache:
    """What a row keeps of its finished blocks, P positions in all."""

    ids_P: Tensor
    """[P] int64 on the CPU: the tokens it was made from."""
    layers: list[tuple[Tensor, Tensor]]
    """Per layer, keys (after the rotary embedding) and values [heads, P, head size]."""
    last_hidden_D: Tensor
    """Raw hidden state of the last position, which a shifted denoiser predicts the next from."""

    @property
    def length(self) -> int:
        """P."""
        return len(self.ids_P)

    @property
    def num_bytes(self) -> int:
        """Bytes on the device."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Span:
    """The positions [start, end) of a row that a forward computes."""

    row: BlockRow
    cache: BlockCache | None
    end: int
    num_kept: int
    """Leading positions of the row that are cached afterwards."""

    @property
    def start(self) -> int:
        return 0 if self.cache is None else self.cache.length

    @property
    def length(self) -> int:
        return self.end - self.start


class BlockCaches:
    """Runs sampling steps of a block-causal denoiser; owned by one thread.

    A step computes from the end of what is cached to the end of the last block that is needed.
    A block that was finished since goes along: what is cached of it comes from its final tokens
    and not from the last masked state. Whatever is cached is checked against the row's tokens, so
    a sampler that masks a finished position again costs a new start and never a wrong number.
    """

    def __init__(self, denoiser: Denoiser, *, max_bytes: int) -> None:
        """Starts with nothing cached.

        Args:
            denoiser: Block-causal.
            max_bytes: Of all rows together; a row that does not fit keeps what it has and computes
                the rest at every step. 0 caches nothing.

        Raises:
            ValueError: full attention.
        """
        if not isinstance(denoiser, BlockDenoiser) or denoiser.info.block_length is None:
            raise ValueError(
                f"{denoiser.info.name} has full attention; only block-causal denoisers are cached"
            )
        self._denoiser = denoiser
        self._block_length = denoiser.info.block_length
        self._max_bytes = max_bytes
        self._caches: dict[Hashable, BlockCache] = {}
        self.num_bytes = 0
        """Bytes that are held now."""
        self.num_forward_tokens = 0
        """Positions computed so far, padding left out."""

    @torch.no_grad()
    def hidden_states(self, rows: Sequence[BlockRow]) -> Tensor:
        """Takes one forward per group of rows with spans of similar length.

        Args:
            rows: Each with a key of its own, and something needed.

        Returns:
            [B, longest, D] aligned hidden states, 0 outside of what was computed.
        """
        spans: list[_Span] = []
        # Rows of one step are planned before any of them has grown, hence the reservation.
        num_reserved = 0
        for row in rows:
            span = self._span(row, num_reserved)
            num_reserved += (span.num_kept - span.start) * self._bytes_per_position
            spans.append(span)
        length = max(len(row.ids_L) for row in rows)
        shape = (len(rows), length, self._denoiser.info.hidden_size)
        head = self._denoiser.head_weight
        hidden_BLD = torch.zeros(shape, dtype=head.dtype, device=head.device)
        for group in _groups([span.length for span in spans]):
            chosen = [spans[index] for index in group]
            for index, span, hidden_SD in zip(group, chosen, self._run(chosen), strict=True):
                hidden_BLD[index, span.start : span.end] = hidden_SD
        return hidden_BLD

    def drop(self, key: Hashable) -> None:
        """Forgets a row; harmless where nothing is cached."""
        cache = self._caches.pop(key, None)
        if cache is not None:
            self.num_bytes -= cache.num_bytes

    def _span(self, row: BlockRow, num_reserved: int) -> _Span:
        """Plans what to compute for a row, and what to cache of it.

        Args:
            num_reserved: Bytes that rows planned before it will add.
        """
        length = len(row.ids_L)
        needed = row.needed_L.nonzero()[:, 0]
        first_needed, last_needed = int(needed[0]), int(needed[-1])
        end = min((last_needed // self._block_length + 1) * self._block_length, length)
        is_open = row.open_L.nonzero()[:, 0]
        first_open = int(is_open[0]) if len(is_open) else length
        # Blocks before the first open mask; a block that is needed is still at work.
        num_final = min(first_open, first_needed) // self._block_length * self._block_length
        cache = self._caches.get(row.key)
        if cache is not None and not (
            cache.length <= num_final and torch.equal(cache.ids_P, row.ids_L[: cache.length])
        ):
            self.drop(row.key)
            cache = None
        start = 0 if cache is None else cache.length
        growth = (num_final - start) * self._bytes_per_position
        fits = self.num_bytes + num_reserved + growth <= self._max_bytes
        return _Span(row=row, cache=cache, end=end, num_kept=num_final if fits else start)

    @property
    def _bytes_per_position(self) -> int:
        config = self._denoiser.model.config
        size = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        itemsize = self._denoiser.head_weight.dtype.itemsize
        return int(2 * config.num_hidden_layers * config.num_key_value_heads * size * itemsize)

    def _run(self, spans: Sequence[_Span]) -> list[Tensor]:
        """Runs spans as one padded batch: aligned hidden states [S, D] of each."""
        device = self._denoiser.device
        starts_B = torch.tensor([span.start for span in spans], device=device)
        lengths_B = torch.tensor([span.length for span in spans], device=device)
        cached, width = int(starts_B.max()), int(lengths_B.max())
        ids = [span.row.ids_L[span.start : span.end] for span in spans]
        hidden_BSD, layers = self._denoiser.run_span(
            pad_sequence(ids, batch_first=True).to(device),
            block_span(
                starts_B, lengths_B, block_length=self._block_length, cached=cached, span=width
            ),
            starts_B[:, None] + torch.arange(width, device=device),
            _stacked([span.cache for span in spans], cached),
        )
        self.num_forward_tokens += int(lengths_B.sum())
        aligned = []
        for index, span in enumerate(spans):
            new = [(keys[index], values[index]) for keys, values in layers]
            self._keep(span, hidden_BSD[index], new)
            aligned.append(self._align(span, hidden_BSD[index, : span.length]))
        return aligned

    def _keep(self, span: _Span, raw_SD: Tensor, new: list[tuple[Tensor, Tensor]]) -> None:
        num_new = span.num_kept - span.start
        if not num_new:
            return
        # Copies: a view would hold the whole batch.
        grown = [(keys[:, :num_new], values[:, :num_new]) for keys, values in new]
        if span.cache is not None:
            grown = [
                (torch.cat([old_keys, keys], dim=1), torch.cat([old_values, values], dim=1))
                for (old_keys, old_values), (keys, values) in zip(
                    span.cache.layers, grown, strict=True
                )
            ]
        else:
            grown = [(keys.clone(), values.clone()) for keys, values in grown]
        cache = BlockCache(
            ids_P=span.row.ids_L[: span.num_kept].clone(),
            layers=grown,
            last_hidden_D=raw_SD[num_new - 1].clone(),
        )
        self.drop(span.row.key)
        self._caches[span.row.key] = cache
        self.num_bytes += cache.num_bytes

    def _align(self, span: _Span, raw_SD: Tensor) -> Tensor:
        if self._denoiser.info.alignment == "aligned":
            return raw_SD
        before_D = raw_SD[0] if span.cache is None else span.cache.last_hidden_D
        return torch.cat([before_D[None], raw_SD[:-1]])


def _stacked(caches: Sequence[BlockCache | None], length: int) -> list[tuple[Tensor, Tensor]]:
    """Pads caches to one length: per layer [B, heads, length, head size]; none for length 0."""
    if not length:
        return []
    some = next(cache for cache in caches if cache is not None)

    def stack(layer: int, part: int) -> Tensor:
        empty = some.layers[layer][part][:, :0]
        rows = [empty if cache is None else cache.layers[layer][part] for cache in caches]
        return torch.stack([pad(row, (0, 0, 0, length - row.shape[1])) for row in rows])

    return [(stack(layer, 0), stack(layer, 1)) for layer in range(len(some.layers))]


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Puts together what differs less than twofold: a long first span would pad every other."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if groups and lengths[index] < 2 * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
