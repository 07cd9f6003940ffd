import pytest
import torch
from transformers import BertTokenizer, PreTrainedTokenizerFast

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.families.alignment_probe import probe_alignment
from masked_diffusion.families.probe_passages import TEXT, encoded_passages
from tests import tiny_models


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("initializer_range", [0.02, 0.1, 0.5])
def test_random_weights_are_inconclusive(
    initializer_range: float, tied: bool, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = tiny_models.qwen2_config(
        vocab_size=len(tiny_tokenizer),
        initializer_range=initializer_range,
        tie_word_embeddings=tied,
    )
    for seed in range(5):
        denoiser = checkpoints.new_denoiser(config, tiny_tokenizer, seed=seed).eval()
        assert probe_alignment(denoiser).verdict == "inconclusive"


def test_the_readings_are_the_log_likelihoods_of_the_raw_rows(trained_aligned: Denoiser) -> None:
    """Every held token again, one forward a token position set, in float64."""
    probe = probe_alignment(trained_aligned)
    assert probe.aligned is not None
    tokenizer = trained_aligned.tokenizer
    assert tokenizer is not None
    special = set(trained_aligned.info.special_token_ids)
    read = []
    for text in TEXT.values():
        ids = tokenizer(text)["input_ids"][:128]
        for offset in (2, 5):
            held = [
                p
                for p in range(offset, len(ids), 6)
                if ids[p] not in special
                and ids[p] != ids[p - 1]
                and (p + 1 == len(ids) or ids[p] != ids[p + 1])
            ]
            state = [
                trained_aligned.info.mask_token_id if p in held else i for p, i in enumerate(ids)
            ]
            with torch.no_grad():
                logits = trained_aligned.model(torch.tensor([state])).logits[0].double()
            logits[:, trained_aligned.info.mask_token_id] = -torch.inf
            read += [float(logits[p].log_softmax(-1)[ids[p]]) for p in held]
    assert probe.num_held == len(read)
    assert probe.aligned.log_likelihood == pytest.approx(sum(read) / len(read), abs=1e-5)


def test_without_a_tokenizer_there_is_no_verdict() -> None:
    config = tiny_models.qwen2_config(vocab_size=50)
    denoiser = checkpoints.new_denoiser(config, None, seed=0, mask_token_id=2)
    probe = probe_alignment(denoiser)
    assert (probe.verdict, probe.num_held) == ("inconclusive", 0)
    assert "no tokenizer" in str(probe)


def test_a_tokenizer_of_residues_gets_proteins_and_one_of_nothing_gets_none() -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

    def tokenizer(words: str) -> BertTokenizer:
        vocab = {word: index for index, word in enumerate([*special, *words])}
        return BertTokenizer(vocab=vocab, do_lower_case=False)

    residues = encoded_passages(tokenizer("ACDEFGHIKLMNPQRSTVWY"), max_length=64)
    assert set(residues) == {"protein", "antibody"}
    assert all(len(ids_L) == 64 for ids_L in residues.values())
    assert encoded_passages(tokenizer("xyz"), max_length=64) == {}
