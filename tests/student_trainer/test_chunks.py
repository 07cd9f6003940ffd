"""Prompts with their answers as chunks; documents without are in test_data.py."""

import numpy as np
import pytest

from student_trainer.chat import Messages
from student_trainer.chunks import Chunking, cut
from student_trainer.documents import Document

PROMPT, ANSWER = "x = 1\n" * 5, "y = 2\nz = 3\n"
CHAT = (
    "{{ bos_token }}{% for m in messages %}<M>{{ m.role }}\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<M>assistant\n{% endif %}"
)


def cut_pair(tokenizer, *, max_seq_len, prompt=PROMPT, answer=ANSWER):
    document = Document(text=answer, prompt=prompt, source="here")
    # min_chunk_tokens is for documents without a prompt.
    chunking = Chunking(max_seq_len=max_seq_len, min_chunk_tokens=max_seq_len - 1)
    return cut([document], tokenizer, chunking=chunking)


def encode(text, tokenizer):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("room", [-5, -1, 0, 1, 7, 1000])
def test_a_pair_is_one_chunk_and_keeps_the_answer_before_the_end_of_the_prompt(
    tiny_tokenizer, room
):
    """`room` is what is left for the prompt beside bos and the answer with its eos."""
    prompt, answer = encode(PROMPT, tiny_tokenizer), encode(ANSWER, tiny_tokenizer)
    answer.append(tiny_tokenizer.eos_token_id)

    chunks = cut_pair(tiny_tokenizer, max_seq_len=1 + len(answer) + room)

    kept_prompt = prompt[-room:] if room > 0 else []
    kept_answer = answer[: len(answer) + min(room, 0)]
    (piece,), (prompt_length,) = chunks.pieces, chunks.prompt_lengths
    assert piece.tolist() == [tiny_tokenizer.bos_token_id, *kept_prompt, *kept_answer]
    assert prompt_length == 1 + len(kept_prompt)
    lost = len(prompt) - len(kept_prompt) + len(answer) - len(kept_answer)
    assert chunks.num_dropped_tokens == lost
    assert piece.dtype == np.int32


def test_an_empty_answer_is_dropped_and_counted_and_a_short_one_is_not(tiny_tokenizer):
    empty = cut_pair(tiny_tokenizer, max_seq_len=64, answer="")
    assert (empty.pieces, empty.num_dropped, empty.num_documents) == ([], 1, 1)
    short = cut_pair(tiny_tokenizer, max_seq_len=64, prompt="a", answer="b")
    assert (len(short.pieces), short.num_dropped) == (1, 0)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer, monkeypatch):
    """The template's mask token stands for any special token that a text must not spell out."""
    monkeypatch.setattr(tiny_tokenizer, "chat_template", CHAT)
    return tiny_tokenizer


def cut_chat(tokenizer, *contents):
    items = tuple(
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    )
    document = Document(text="", source="here, row 1", messages=Messages(items))
    return cut([document], tokenizer, chunking=Chunking(max_seq_len=200, min_chunk_tokens=1))


def test_a_conversation_is_what_the_template_writes_with_its_special_tokens(chat_tokenizer):
    chunks = cut_chat(chat_tokenizer, "a = 1", "b = 2", "c = 3", "d = 4")
    (piece,), (prompt_length,) = chunks.pieces, chunks.prompt_lengths
    eos = chat_tokenizer.eos_token
    wanted = "".join(
        f"<M>{role}\n{text}{eos}\n"
        for role, text in [("user", "a = 1"), ("assistant", "b = 2"), ("user", "c = 3")]
    )
    # One bos, although the template and the chunk both begin with one.
    assert chat_tokenizer.decode(piece[1:prompt_length]) == f"{wanted}<M>assistant\n"
    assert piece.tolist().count(chat_tokenizer.bos_token_id) == 1
    assert chat_tokenizer.decode(piece[prompt_length:]) == f"d = 4{eos}\n"
    assert piece.tolist().count(chat_tokenizer.mask_token_id) == 4


def test_a_message_that_spells_out_a_special_token_is_refused(chat_tokenizer):
    with pytest.raises(ValueError, match="here, row 1: a message spells out the special token"):
        cut_chat(chat_tokenizer, "what is <M>?", "a mask")


def test_a_conversation_needs_a_template_that_can_be_cut(tiny_tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="the student's has none"):
        cut_chat(tiny_tokenizer, "a", "b")
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ messages|length }}")
    with pytest.raises(ValueError, match="where the answer begins is not known"):
        cut_chat(tiny_tokenizer, "a", "b")
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ raise_exception('no such role') }}")
    with pytest.raises(ValueError, match=r"here, row 1: .* no such role"):
        cut_chat(tiny_tokenizer, "a", "b")
