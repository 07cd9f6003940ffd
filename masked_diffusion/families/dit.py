"""The diffusion transformer of MDLM: its modules carry the published tensor names.

Source: Sahoo et al., arXiv:2406.07524, after Peebles and Xie, arXiv:2212.09748 (adaLN); the format
is that of kuleshov-group/mdlm-owt, whose own code needs flash-attn and so a GPU.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masked_diffusion.families.mdlm_config import MdlmConfig

MLP_RATIO = 4
ROTARY_BASE = 10_000
NUM_FREQUENCIES = 256
"""Width of the embedding of sigma before its two linear layers."""
MAX_PERIOD = 10_000
"""Longest period of that embedding, over 2 pi."""


class ClosedLinear(nn.Linear):
    """A linear layer that begins at zero, so that a new block passes its input on unchanged."""


class LayerNorm(nn.Module):
    """Layer norm without a bias, always in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
        """Normalises, then modulates; comes back in the dtype of the weights."""
        normed = F.layer_norm(x.float(), self.weight.shape) * self.weight
        return (normed * (1 + scale_B1D) + shift_B1D).to(self.weight.dtype)


class SigmaEmbedder(nn.Module):
    """Embeds the noise level of each sequence: [B] -> [B, cond_dim]."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(NUM_FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, sigma_B: Tensor) -> Tensor:
        half = NUM_FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=sigma_B.device)
        angles = sigma_B.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) / half * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(waves.to(self.dtype))
        return embedded


class Rotary(nn.Module):
    """Rotary angles of the positions, over the whole head."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        # Part of the published format; never computed with, since a cast would round it.
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", self.frequencies())

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """[head_width / 2] float32, in radians per position."""
        even = torch.arange(0, self.head_width, 2, dtype=torch.float32, device=device)
        return 1.0 / ROTARY_BASE ** (even / self.head_width)

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [L, head_width / 2] float32 each."""
        positions = torch.arange(length, dtype=torch.float32, device=device)
        angles = torch.outer(positions, self.frequencies(device))
        return angles.cos(), angles.sin()


def rotate(x_BHLE: Tensor, cos_LF: Tensor, sin_LF: Tensor) -> Tensor:
    """Turns each pair (i, i + half) of the head's E dimensions by its position's angle."""
    first, second = x_BHLE.chunk(2, dim=-1)
    cos, sin = cos_LF.to(x_BHLE.dtype), sin_LF.to(x_BHLE.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Block(nn.Module):
    """Attention in both directions, then an MLP, each modulated and gated by the condition."""

    def __init__(self, config: MdlmConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.num_heads = config.n_heads
        self.norm1 = LayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_RATIO * width, width),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.adaLN_modulation = ClosedLinear(config.cond_dim, 6 * width)

    def forward(
        self,
        x_BLD: Tensor,
        condition_BC: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1LL: Tensor | None,
    ) -> Tensor:
        modulation_B1 = self.adaLN_modulation(condition_BC)[:, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation_B1.chunk(6, dim=-1)
        attended_BLD = self._attend(self.norm1(x_BLD, shift_1, scale_1), rotary, mask_B1LL)
        x_BLD = x_BLD + gate_1 * self.dropout(self.attn_out(attended_BLD))
        widened_BLD = self.mlp(self.norm2(x_BLD, shift_2, scale_2))
        result: Tensor = x_BLD + gate_2 * self.dropout(widened_BLD)
        return result

    def _attend(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], mask_B1LL: Tensor | None
    ) -> Tensor:
        batch, length, width = x_BLD.shape
        qkv = self.attn_qkv(x_BLD).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q_BHLE, k_BHLE, v_BHLE = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed_BHLE = F.scaled_dot_product_attention(
            rotate(q_BHLE, *rotary), rotate(k_BHLE, *rotary), v_BHLE, attn_mask=mask_B1LL
        )
        return mixed_BHLE.transpose(1, 2).reshape(batch, length, width)


class VocabularyEmbedding(nn.Module):
    """One row per id."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, input_ids_BL: Tensor) -> Tensor:
        return F.embedding(input_ids_BL, self.embedding)


class OutputLayer(nn.Module):
    """The last norm, modulated, and the head. The norm alone is what `forward` applies."""

    def __init__(self, config: MdlmConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_dim)
        self.linear = ClosedLinear(config.hidden_dim, config.vocab_size)
        self.adaLN_modulation = ClosedLinear(config.cond_dim, 2 * config.hidden_dim)

    def forward(self, x_BLD: Tensor, condition_BC: Tensor) -> Tensor:
        shift_B1D, scale_B1D = self.adaLN_modulation(condition_BC)[:, None].chunk(2, dim=-1)
        normed: Tensor = self.norm_final(x_BLD, shift_B1D, scale_B1D)
        return normed


class DiTBackbone(nn.Module):
    """Everything, with the tensor names of the published checkpoints."""

    def __init__(self, config: MdlmConfig) -> None:
        super().__init__()
        self.vocab_embed = VocabularyEmbedding(config.vocab_size, config.hidden_dim)
        self.sigma_map = SigmaEmbedder(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_dim // config.n_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.output_layer = OutputLayer(config)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, sigma_B: Tensor
    ) -> Tensor:
        """[B, L, D] after the last norm: what the head turns into logits."""
        x_BLD = self.vocab_embed(input_ids_BL)
        condition_BC = F.silu(self.sigma_map(sigma_B))
        rotary = self.rotary_emb(x_BLD.shape[1], x_BLD.device)
        mask_B1LL = None
        if attention_mask_BL is not None:
            # [B, 1, L, L] is taken as it is.
            is_whole = attention_mask_BL.shape != input_ids_BL.shape
            mask_B1LL = attention_mask_BL if is_whole else attention_mask_BL.bool()[:, None, None]
        for block in self.blocks:
            x_BLD = block(x_BLD, condition_BC, rotary, mask_B1LL)
        hidden_BLD: Tensor = self.output_layer(x_BLD, condition_BC)
        return hidden_BLD
