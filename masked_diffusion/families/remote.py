"""Models whose code comes with the checkpoint: run only where the user trusts it."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from masked_diffusion.families.base import Denoiser, padding_mask
from masked_diffusion.families.info import Alignment
from masked_diffusion.families.rounding import ROUNDING

logger = logging.getLogger(__name__)

MODEL_KEYS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
"""Of auto_map, in this order: what has a head is preferred."""
LENGTH_FIELDS = ("max_position_embeddings", "max_sequence_length", "n_positions", "model_length")
SIZE_FIELDS = {
    "hidden_size": ("d_model", "hidden_dim", "n_embd"),
    "vocab_size": ("embedding_size",),
}
"""Names that our code reads -> others that are published for the same."""
_TEST_LENGTH = 8


def remote_family(values: Mapping[str, Any], model: str) -> type[Denoiser]:
    """Makes the family of one checkpoint from the classes that its auto_map names.

    Args:
        values: Its config.json.
        model: Folder or hub id; its code is imported.

    Raises:
        ValueError: no auto_map, or no model class in it.
    """
    auto_map = values.get("auto_map", {})
    key = next((key for key in MODEL_KEYS if key in auto_map), None)
    if key is None or "AutoConfig" not in auto_map:
        raise ValueError(
            f"{model} brings no code that could be run: auto_map of its config.json must name "
            f"AutoConfig and one of {', '.join(MODEL_KEYS)}"
        )
    try:
        classes = {
            "config_class": get_class_from_dynamic_module(auto_map["AutoConfig"], model),
            "model_class": get_class_from_dynamic_module(auto_map[key], model),
        }
    except (ImportError, OSError, AttributeError) as error:
        raise ValueError(f"the code of {model} cannot be imported: {error}") from error
    return type("Remote", (Remote,), classes)


class Remote(Denoiser):
    """Any model with a linear head: what enters the head are its hidden states.

    The forward is stopped there by a hook, so that logits are only made where they are needed.
    Padding is given as a [B, L] mask; a model that does not honour it is run one row a forward.
    """

    family = "remote"
    default_alignment: ClassVar[Alignment | None] = None
    takes_padding = True
    """Found by `settle`."""

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> PreTrainedConfig:
        config = super().read_config(values)
        for name, others in SIZE_FIELDS.items():
            known = (getattr(config, n, None) for n in (name, *others))
            size = next((value for value in known if value is not None), None)
            if size is None:
                raise ValueError(f"config.json must say {name} (or {', '.join(others)})")
            setattr(config, name, size)
        return config

    @classmethod
    def max_length(cls, config: PreTrainedConfig) -> int:
        lengths = (getattr(config, name, None) for name in LENGTH_FIELDS)
        length = next((value for value in lengths if value is not None), None)
        if length is None:
            raise ValueError(f"config.json must say one of {', '.join(LENGTH_FIELDS)}")
        return int(length)

    @classmethod
    def prepare_config(cls, config: PreTrainedConfig) -> None:
        config.is_causal = False

    @property
    def head_weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self._head.weight)

    @property
    def head_bias(self) -> Tensor | None:
        return cast(Tensor | None, getattr(self._head, "bias", None))

    @property
    def _head(self) -> nn.Module:
        head = self.model.get_output_embeddings()
        if head is None or not hasattr(head, "weight"):
            raise ValueError(
                f"{type(self.model).__name__} has no output embeddings: its code must give a "
                "linear head by get_output_embeddings()"
            )
        return head

    @torch.no_grad()
    def settle(self) -> None:
        """Proves that logits are the head on what is served, and finds whether padding is honoured.

        Raises:
            ValueError: the logits are something else than the head's product.
        """
        ids_BL = torch.arange(2 * _TEST_LENGTH, device=self.device).view(2, -1)
        ids_BL %= self.info.vocab_size
        lengths_B = torch.tensor([_TEST_LENGTH, _TEST_LENGTH - 3], device=self.device)
        rows = [ids_BL[:1], ids_BL[1:, : int(lengths_B[1])]]
        alone = [self._enters_head(row) for row in rows]
        self._check_head(rows[0], alone[0])
        mask_BL = padding_mask(lengths_B, _TEST_LENGTH)
        try:
            together_BLD = self._enters_head(ids_BL, mask_BL)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            logger.warning("padding model=%s refused=%r", self.info.name, error)
            self.takes_padding = False
            return
        errors = [
            float((together_LD[: row.shape[1]] - alone_BLD[0]).abs().max())
            for together_LD, row, alone_BLD in zip(together_BLD, rows, alone, strict=True)
        ]
        limit = ROUNDING[alone[0].dtype] * float(alone[0].abs().max())
        self.takes_padding = max(errors) <= limit
        if not self.takes_padding:
            logger.warning(
                "padding model=%s is not honoured by its code, error=%.1e; one row a forward",
                self.info.name,
                max(errors),
            )

    def _check_head(self, ids_1L: Tensor, hidden_1LD: Tensor) -> None:
        output = self.model(input_ids=ids_1L, **self._fixed_arguments())
        logits_1LV = output.logits if hasattr(output, "logits") else output[0]
        product_1LV = nn.functional.linear(hidden_1LD, self.head_weight, self.head_bias)
        error = float((logits_1LV - product_1LV).abs().max())
        limit = ROUNDING[hidden_1LD.dtype] * float(product_1LV.abs().max())
        if not error <= limit:
            raise ValueError(
                f"the logits of {self.info.name} are not its head's product with what enters the "
                f"head: they differ by {error:.1e} (scaled, capped or shifted in its code?); such "
                "a model cannot be served by hidden states"
            )

    def raw_hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        *,
        times_B: Tensor | None = None,
    ) -> Tensor:
        if attention_mask_BL is None or self.takes_padding:
            return self._enters_head(input_ids_BL, attention_mask_BL)
        rows = [
            self._enters_head(ids_L[mask_L][None])[0]
            for ids_L, mask_L in zip(input_ids_BL, attention_mask_BL, strict=True)
        ]
        length = input_ids_BL.shape[1]
        padded = [nn.functional.pad(row_LD, (0, 0, 0, length - len(row_LD))) for row_LD in rows]
        return torch.stack(padded)

    def _enters_head(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        arguments = self._fixed_arguments()
        if mask_BL is not None:
            # As integers: remote code commonly computes 1 - mask, which torch refuses for bool.
            arguments["attention_mask"] = mask_BL.long()
        handle = self._head.register_forward_pre_hook(_stop)
        try:
            self.model(input_ids=ids_BL, **arguments)
        except _HeadReached as reached:
            return reached.hidden_BLD
        finally:
            handle.remove()
        raise ValueError(
            f"{type(self.model).__name__} never calls the head that get_output_embeddings() gives"
        )

    def _fixed_arguments(self) -> dict[str, Any]:
        known = inspect.signature(self.model.forward).parameters
        return {"use_cache": False} if "use_cache" in known else {}


class _HeadReached(Exception):  # noqa: N818  (no error: the way out of a forward)
    """Carries what enters the head past the code that would go on."""

    def __init__(self, hidden_BLD: Tensor) -> None:
        super().__init__()
        self.hidden_BLD = hidden_BLD


def _stop(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    raise _HeadReached(arguments[0])
