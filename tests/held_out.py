"""Held-out sequences for tests of evaluation, and plain float64 views of a denoiser on them."""

import torch

from student_trainer.data import Chunking, load_dataset, tokenize_documents
from student_trainer.documents import Document


def dataset_of(texts, tokenizer):
    documents = [Document(text=text, source="test") for text in texts]
    return tokenize_documents(
        documents, tokenizer, chunking=Chunking(max_seq_len=32, min_chunk_tokens=2)
    )


@torch.no_grad()
def naive_log_probs(denoiser, xt_L):
    """Distribution at every position of one row that is alone and not padded, [L, V] float64."""
    hidden_LD = denoiser.hidden_states(xt_L[None])[0].double()
    logits_LV = hidden_LD @ denoiser.head_weight.double().T
    logits_LV = logits_LV[:, : denoiser.info.vocab_size]
    logits_LV[:, denoiser.info.mask_token_id] = -torch.inf
    return logits_LV.log_softmax(dim=-1)


def rows_of(states):
    for row, length in enumerate(states.lengths_B.tolist()):
        yield (
            row,
            states.x0_BL[row, :length],
            states.xt_BL[row, :length],
            states.masked_BL[row, :length],
        )


def held_out_dataset(path, tokenizer, *, max_seq_len, min_chunk_tokens):
    """The file's texts as an evaluation tokenizes them."""
    return load_dataset(
        str(path),
        text_keys=["text"],
        tokenizer=tokenizer,
        max_seq_len=max_seq_len,
        min_chunk_tokens=min_chunk_tokens,
    )
