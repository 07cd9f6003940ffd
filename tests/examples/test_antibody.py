"""Conversion and generation of the antibody example, on a tiny random BERT of the same format."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from examples.antibody import convert, generate, plausibility
from masked_diffusion import checkpoints
from tests.servers import serve

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]
CONFIG = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
LIGHT_CHAIN = (
    "DIQMTQSPSSLSASVGDRVTITCRASQSISSYLNWYQQKPGKAPKLLIYAASSLQSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQSYSTPLT"
    "FGGGTKVEIK"
)


def _published() -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = dict(BertForMaskedLM(BertConfig.from_dict(CONFIG)).state_dict())
    return tensors | {"bert.pooler.dense.bias": torch.zeros(16), "cls.chain.bias": torch.zeros(2)}


def test_a_converted_folder_is_served_and_sampled(tmp_path: Path) -> None:
    convert.convert(_published(), CONFIG, TOKENS, tmp_path / "teacher")
    denoiser = checkpoints.load_denoiser(str(tmp_path / "teacher"))
    assert (denoiser.info.family, denoiser.info.mask_token_id) == ("bert", 4)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "teacher")
    assert tokenizer("EVQ")["input_ids"] == [2, *map(TOKENS.index, "EVQ"), 3]
    assert tokenizer("E V Q")["input_ids"] == tokenizer("EVQ")["input_ids"]
    with serve(denoiser) as server:
        found = generate.generate(server.address, tokenizer, lengths=[9, 12], num_steps=4, seed=0)
        perplexity = plausibility.pseudo_perplexity(server.address, tokenizer, ["EVQLVQSGPEVK"])
    assert all(len(s) <= n for s, n in zip(found, [9, 12], strict=True))
    assert perplexity > 1


def test_other_weights_are_refused(tmp_path: Path) -> None:
    tensors = _published()
    del tensors["cls.predictions.transform.dense.weight"]
    with pytest.raises(ValueError, match="these weights are not AntiBERTy's"):
        convert.convert(tensors, CONFIG, TOKENS, tmp_path / "teacher")


def test_a_file_that_is_not_the_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"no wheel")
    with pytest.raises(ValueError, match=r"is not the wheel of antiberty==0\.1\.3"):
        convert.convert_wheel(tmp_path / "x.whl", tmp_path / "teacher")


def test_the_framework_pattern_knows_a_light_chain() -> None:
    assert plausibility.framework_fraction([LIGHT_CHAIN, LIGHT_CHAIN.replace("C", "S")]) == 0.5


def test_sequences_come_back_from_their_file(tmp_path: Path) -> None:
    generate.write_sequences(["EVQ", "DIQ"], tmp_path / "data" / "x.jsonl")
    assert generate.read_sequences(tmp_path / "data" / "x.jsonl") == ["EVQ", "DIQ"]
