"""What the server understands of a checkpoint, before a weight is read."""

from dataclasses import dataclass
from pathlib import Path

from masked_diffusion.blueprint import AlignmentSource, Blueprint
from masked_diffusion.families import Denoiser
from masked_diffusion.families.info import Alignment, Attention, Noise
from masked_diffusion.memory import estimate_bytes
from masked_diffusion.weight_files import TensorDifference, compare_tensors, read_weight_files


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """The output projection."""

    shape: tuple[int, int]
    """[padded vocabulary, width]."""
    tied: bool
    """Whether it is the embedding's matrix."""
    bias: bool


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """The tokenizer that comes with the checkpoint."""

    tokenizer_class: str
    fingerprint: str
    """SHA-256 of the vocabulary: equal where every id means the same."""
    chat_template: bool


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """The safetensors files, by their headers; a hub id's as far as they are in the local cache."""

    is_folder: bool
    """Whether a folder was named; the missing files of a hub id are fetched on loading."""
    num_bytes: int
    num_files: int
    dtypes: dict[str, int]
    """Number format, as safetensors names it -> numbers stored in it."""
    missing_files: tuple[str, ...]
    damaged_files: tuple[str, ...]
    missing_tensors: tuple[str, ...]
    """Of the architecture, in no file; not looked for while files of a hub id are missing."""
    unused_tensors: tuple[str, ...]
    """In a file, of no use to the architecture."""

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be wrong."""
        missing_files = self.is_folder and self.missing_files
        return not (missing_files or self.damaged_files or self.missing_tensors)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that is known without the weights; what stands here is what would be served."""

    name: str
    family: str
    model_class: str
    attention: Attention
    block_length: int | None
    noise: Noise
    uses_time: bool
    alignment: Alignment | None
    """None where only a trained model can tell."""
    alignment_source: AlignmentSource
    mask_token_id: int
    mask_token_source: str
    special_token_ids: dict[str, int | None]
    """Role -> id."""
    other_special_token_ids: tuple[int, ...]
    """Special to the tokenizer, without a role here."""
    vocab_size: int
    """Ids that mean something."""
    padded_vocab_size: int
    """Rows of the head."""
    hidden_size: int
    num_layers: int | None
    """None where the config does not say."""
    max_length: int
    num_parameters: int
    head: HeadFacts
    tokenizer: TokenizerFacts | None
    memory_bytes: dict[str, int | None]
    """Number format -> bytes of the weights in memory, None where it cannot be had; see
    `estimate_bytes`."""
    weights: WeightFacts


def inspect_blueprint(blueprint: Blueprint) -> Inspection:
    """Gathers the facts; of the weights only the files' headers are read.

    Raises:
        ValueError: the architecture cannot be built from the config, or tokenizer and embedding do
            not fit.
    """
    denoiser = blueprint.build_on_meta()
    info = denoiser.info
    special = {
        "mask": info.mask_token_id,
        "pad": info.pad_token_id,
        "bos": info.bos_token_id,
        "eos": info.eos_token_id,
    }
    return Inspection(
        name=info.name,
        family=info.family,
        model_class=type(denoiser.model).__name__,
        attention=info.attention,
        block_length=info.block_length,
        noise=info.noise,
        uses_time=info.uses_time,
        alignment=None if blueprint.alignment_source == "unknown" else info.alignment,
        alignment_source=blueprint.alignment_source,
        mask_token_id=info.mask_token_id,
        mask_token_source=blueprint.mask_token_source,
        special_token_ids=special,
        other_special_token_ids=tuple(
            token_id for token_id in info.special_token_ids if token_id not in special.values()
        ),
        vocab_size=info.vocab_size,
        padded_vocab_size=info.padded_vocab_size,
        hidden_size=info.hidden_size,
        num_layers=getattr(blueprint.config, "num_hidden_layers", None),
        max_length=info.max_length,
        num_parameters=info.num_parameters,
        head=_head_facts(denoiser),
        tokenizer=_tokenizer_facts(denoiser),
        memory_bytes=estimate_bytes(denoiser),
        weights=_weight_facts(denoiser),
    )


def _head_facts(denoiser: Denoiser) -> HeadFacts:
    weight = denoiser.head_weight
    num_rows, width = weight.shape
    embeddings = denoiser.model.get_input_embeddings()
    return HeadFacts(
        shape=(num_rows, width),
        tied=getattr(embeddings, "weight", None) is weight,
        bias=denoiser.head_bias is not None,
    )


def _tokenizer_facts(denoiser: Denoiser) -> TokenizerFacts | None:
    tokenizer = denoiser.tokenizer
    if tokenizer is None:
        return None
    return TokenizerFacts(
        tokenizer_class=type(tokenizer).__name__,
        fingerprint=denoiser.info.tokenizer_fingerprint,
        chat_template=tokenizer.chat_template is not None,
    )


def _weight_facts(denoiser: Denoiser) -> WeightFacts:
    files = read_weight_files(denoiser.info.name)
    is_folder = Path(denoiser.info.name).is_dir()
    difference = TensorDifference(missing=(), unused=())
    if is_folder or not files.missing_files:
        difference = compare_tensors(denoiser, files.tensor_names)
    return WeightFacts(
        is_folder=is_folder,
        num_bytes=files.num_bytes,
        num_files=files.num_files,
        dtypes=files.dtypes,
        missing_files=files.missing_files,
        damaged_files=files.damaged_files,
        missing_tensors=difference.missing,
        unused_tensors=difference.unused,
    )
