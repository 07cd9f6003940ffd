"""The denoiser: a masked sequence in, per position the distribution of its token out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from masked_diffusion.families import info as facts
from masked_diffusion.families.info import Alignment, DenoiserInfo

EXCLUDED_LOGIT = -1e30
"""Logit of an id that cannot occur: probability exactly 0, and no NaN where two are subtracted."""


class Denoiser(nn.Module):
    """A transformers model, wrapped so that row p of every output is about the token at p.

    A family subclasses it with the model's classes and with how its body and head are called.
    """

    family: ClassVar[str]
    """Key of the families' table: config.model_type of the checkpoints it reads."""
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    default_alignment: ClassVar[Alignment | None]
    """Of checkpoints that do not say config.logit_alignment; None where only a probe can tell."""
    default_mask_token_id: ClassVar[int | None] = None
    """Of published checkpoints that name none, neither in config nor in tokenizer."""
    key_mapping: ClassVar[Mapping[str, str]] = {}
    """Regular expression in a published tensor's name -> its name in `model_class`."""
    embedding_name: ClassVar[str | None] = None
    """Native name of the embedding where its rows on disk, and not config.vocab_size, are right."""
    converts_tensors: ClassVar[bool] = False
    """Whether tensors are split or merged on loading, so that one cannot be read by its name."""
    layer_pattern: ClassVar[str] = r"(?<=\blayers\.)\d+(?=\.)"
    """Finds a layer's index in a tensor's name, for a student that keeps some layers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        mask_token_id: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.info: DenoiserInfo = facts.describe(
            model.config,
            tokenizer,
            name=name,
            family=self.family,
            alignment=facts.find_alignment(
                model.config, name=name, default=self.default_alignment or "aligned"
            ),
            mask_token_id=mask_token_id,
            max_length=self.max_length(model.config),
            block_length=self.block_length(model.config),
            uses_time=self.uses_time(model.config),
            num_parameters=model.num_parameters(),
        )

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Makes the config of `config_class` from the fields of a published config.json.

        Args:
            values: As on disk; fields of remote code have other names than transformers' own.

        Raises:
            ValueError: a field asks for something that `model_class` cannot do.
        """
        config: PreTrainedConfig = cls.config_class.from_dict(dict(values))
        return config

    @classmethod
    def max_length(cls, config: PreTrainedConfig) -> int:
        """Positions that a sequence may have."""
        return int(config.max_position_embeddings)

    @classmethod
    def block_length(cls, config: PreTrainedConfig) -> int | None:
        """Positions of a block of a block-causal checkpoint; None with full attention."""
        return None

    @classmethod
    def uses_time(cls, config: PreTrainedConfig) -> bool:
        """Whether the body is conditioned on the time of its states."""
        return False

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        """Adjusts a config, before the model is built from it, to attend in both directions."""
        raise NotImplementedError

    def settle(self) -> None:
        """Finds out what only a forward can tell; called once, when the weights are in place."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers, in order: the modules whose names `layer_pattern` ends in."""
        found = {}
        for name, module in self.model.named_modules():
            match = re.search(self.layer_pattern, f"{name}.")
            if match is not None and match.end() == len(name):
                found[int(match.group())] = module
        return [found[index] for index in sorted(found)]

    @property
    def head_weight(self) -> nn.Parameter:
        """[padded V, D], the output projection itself (not a copy)."""
        raise NotImplementedError

    @property
    def head_bias(self) -> Tensor | None:
        """[padded V], or None."""
        raise NotImplementedError

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        """Runs the body: [B, L, D] after the last norm, aligned as the checkpoint has it.

        What stands between the last norm and the vocabulary's matrix (an encoder's transform)
        belongs to the body.
        """
        raise NotImplementedError

    def raw_two_stream_hidden_states(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None, clean_ids_BL: Tensor
    ) -> Tensor:
        """Runs the body on states whose earlier blocks are seen clean, as in training.

        Raises:
            ValueError: full attention, which has no blocks.
        """
        raise ValueError(
            f"clean_ids_BL must be None for {self.info.name}: its attention is full, only "
            "block-causal attention sees the blocks before a position's own clean"
        )

    @property
    def packing_obstacle(self) -> str | None:
        """Why rows of several documents cannot be run, to be read after the name; None = they can.

        Known before any forward, so that a run is refused at its start.
        """
        return f"the family {self.family} has no document masks"

    def raw_packed_hidden_states(self, input_ids_BL: Tensor, document_ids_BL: Tensor) -> Tensor:
        """Runs the body on rows of several documents, none of which sees another."""
        raise NotImplementedError

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        *,
        times_B: Tensor | None = None,
        clean_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Runs the body and aligns its output: row p is what the head turns into token p.

        Args:
            input_ids_BL: [B, L] int64, right padded.
            attention_mask_BL: [B, L], true for real positions; None where nothing is padded,
                which keeps the fastest attention kernel.
            times_B: [B] float32 times in [0, 1]; read only where info.uses_time, which needs them.
            clean_ids_BL: [B, L] int64, the states without noise: what a block-causal denoiser
                sees of the blocks before a position's own. None = the states themselves.

        Returns:
            [B, L, D] in the model's dtype, differentiable. The first
            info.num_invalid_leading_positions rows carry no trained prediction.
        """
        if clean_ids_BL is None:
            raw_BLD = self.raw_hidden_states(input_ids_BL, attention_mask_BL, times_B=times_B)
        else:
            raw_BLD = self.raw_two_stream_hidden_states(
                input_ids_BL, attention_mask_BL, clean_ids_BL
            )
        return self._align(raw_BLD)

    def packed_hidden_states(self, input_ids_BL: Tensor, document_ids_BL: Tensor) -> Tensor:
        """Runs rows of several documents: no document sees another, each has its positions from 0.

        Args:
            input_ids_BL: [B, L] int64.
            document_ids_BL: [B, L] int64, the documents of a row one after the other;
                `document_masks.PADDING` behind the last.

        Returns:
            [B, L, D] as `hidden_states` gives it for each document alone: the first
            info.num_invalid_leading_positions rows of every one carry no trained prediction.

        Raises:
            ValueError: there is a `packing_obstacle`.
        """
        if self.packing_obstacle is not None:
            raise ValueError(
                f"document_ids_BL must be None for {self.info.name}: {self.packing_obstacle}"
            )
        return self._align(self.raw_packed_hidden_states(input_ids_BL, document_ids_BL))

    def _align(self, raw_BLD: Tensor) -> Tensor:
        if self.info.alignment == "aligned":
            return raw_BLD
        return torch.cat([raw_BLD[:, :1], raw_BLD[:, :-1]], dim=1)

    def enable_ragged(self) -> bool:
        """Lets `ragged_hidden_states` be called from now on; False where the model cannot.

        Changes the name of the attention in the model's config, and nothing that it computes.
        """
        return False

    def ragged_hidden_states(self, input_ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Runs rows that lie one after the other, without padding; aligned as `hidden_states`.

        Args:
            input_ids_T: [T] int64, the rows' ids.
            lengths: Of the rows, T in all; neighbours of one length are attended together.

        Returns:
            [T, D] in the model's dtype.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        *,
        times_B: Tensor | None = None,
        clean_ids_BL: Tensor | None = None,
        document_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Same as `hidden_states`, so that DDP and FSDP can wrap the module.

        With document_ids_BL it is `packed_hidden_states`, and the others must be None.
        """
        if document_ids_BL is not None:
            assert attention_mask_BL is None and times_B is None and clean_ids_BL is None
            return self.packed_hidden_states(input_ids_BL, document_ids_BL)
        return self.hidden_states(
            input_ids_BL, attention_mask_BL, times_B=times_B, clean_ids_BL=clean_ids_BL
        )

    def logits(self, hidden: Tensor, *, suppress_mask_token: bool = True) -> Tensor:
        """Applies the head to aligned hidden states.

        The product is made in the model's dtype, like the checkpoint was trained.

        Args:
            hidden: [..., D].
            suppress_mask_token: False keeps the mask id's own logit, as upstream samplers do.

        Returns:
            [..., info.vocab_size] float32: padded columns cut, the mask id at EXCLUDED_LOGIT.
        """
        vocab_size = self.info.vocab_size
        bias = None if self.head_bias is None else self.head_bias[:vocab_size]
        logits = nn.functional.linear(hidden, self.head_weight[:vocab_size], bias).float()
        if suppress_mask_token:
            logits[..., self.info.mask_token_id] = EXCLUDED_LOGIT
        return logits


def padding_mask(lengths_B: Tensor, length: int) -> Tensor | None:
    """Makes the attention mask of right-padded rows: [B, length] bool, or None without padding."""
    if bool((lengths_B == length).all()):
        return None
    return torch.arange(length, device=lengths_B.device) < lengths_B[:, None]
