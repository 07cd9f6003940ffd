"""Which checkpoint is evaluated, and how it is loaded: `NAME=PATH_OR_ID@REVISION,key=value,...`."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import pydantic
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.info import Alignment
from student_trainer.config_file import error_messages

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A checkpoint by path or hub id, with what loading it may need to be told."""

    name: str
    """In tables, plots and JSON."""
    source: str
    """Folder or hub id."""
    revision: str | None = None
    """Branch, tag or commit of the hub; None for a folder, or for the hub's newest."""
    mask_token_id: int | None = None
    alignment: Alignment | None = None
    block_length: int | None = None
    adapter: tuple[str, ...] = ()
    """Folders or hub ids of peft adapters, merged in this order."""
    quantization: str | None = None
    dtype: DtypeName | None = None
    """Of the weights; None = as --dtype says."""

    def folder(self, *, trust_remote_code: bool) -> str:
        """Where the files are: a hub id with a revision is fetched to the hub's cache.

        Raises:
            ValueError: the hub does not give that revision.
        """
        if self.revision is None:
            return self.source
        patterns = [*checkpoints.CHECKPOINT_FILES, *(["*.py"] if trust_remote_code else [])]
        try:
            return huggingface_hub.snapshot_download(
                self.source, revision=self.revision, allow_patterns=patterns
            )
        except (LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"cannot read revision {self.revision!r} of {self.source!r} from the Hugging Face "
                f"hub; check the spelling and the network, or give a folder ({reason})"
            ) from error

    def blueprint_options(self) -> dict[str, Any]:
        """What decides how the checkpoint is read, for `read_blueprint`."""
        return {
            "mask_token_id": self.mask_token_id,
            "alignment": self.alignment,
            "block_length": self.block_length,
        }

    def load(
        self,
        *,
        device: torch.device,
        dtype: DtypeName,
        trust_remote_code: bool,
        run_self_test: bool,
    ) -> Denoiser:
        """Loads the weights, frozen and in evaluation mode; the errors of `load_denoiser`."""
        dtype_name = self.dtype or dtype
        denoiser = checkpoints.load_denoiser(
            self.folder(trust_remote_code=trust_remote_code),
            device=device,
            dtype=None if dtype_name == "auto" else getattr(torch, dtype_name),
            trust_remote_code=trust_remote_code,
            run_self_test=run_self_test,
            adapters=self.adapter,
            quantization=self.quantization,
            **self.blueprint_options(),
        )
        return denoiser.eval().requires_grad_(False)


OPTION_NAMES = tuple(
    field.name
    for field in dataclasses.fields(ModelSpec)
    if field.name not in ("name", "source", "revision")
)


def parse_model(text: str, *, default_name: str | None = None) -> ModelSpec:
    """Reads `[NAME=]PATH_OR_ID[@REVISION][,key=value,...]`; adapter= may come again.

    A path that exists is taken whole, whatever characters are in it.

    Args:
        text: As on the command line.
        default_name: Where none is given; None = the last part of the path that is no hf_ckpt.

    Raises:
        ValueError: an unknown key, or a value that is not allowed.
    """
    place, *options = [text] if Path(text).exists() else text.split(",")
    name, equals, source = place.partition("=")
    if not equals or Path(place).exists():
        name, source = "", place
    revision: str | None = None
    if not Path(source).exists() and "@" in source:
        source, _, revision = source.partition("@")
    if not source:
        raise ValueError(f"no path or hub id in {text!r}; write [NAME=]PATH_OR_ID[,key=value]")
    values: dict[str, object] = {
        "name": name or default_name or _name_of(source),
        "source": source,
        "revision": revision,
    }
    adapters: list[str] = []
    for option in options:
        key, equals, value = option.partition("=")
        if key not in OPTION_NAMES or not equals:
            (nearest,) = difflib.get_close_matches(key, OPTION_NAMES, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown option {option!r} of model {text!r}; did you mean {nearest}=...? known: "
                f"{', '.join(OPTION_NAMES)}"
            )
        if key == "adapter":
            adapters.append(value)
        else:
            values[key] = value
    try:
        return pydantic.TypeAdapter(ModelSpec).validate_python({**values, "adapter": adapters})
    except pydantic.ValidationError as error:
        raise ValueError(f"model {text!r}: {'; '.join(error_messages(error))}") from error


def _name_of(source: str) -> str:
    parts = [part for part in Path(source).parts if part != "hf_ckpt"]
    return parts[-1] if parts else source
