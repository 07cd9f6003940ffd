"""Conversations as training data: every answer of the assistant, given what came before it."""

from collections.abc import Mapping
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Messages:
    """The beginning of a conversation, which ends with an answer of the assistant."""

    items: tuple[Mapping[str, str], ...]
    """{role, content} each, the last one the answer."""


def read_messages(row: Mapping[str, object], key: str, source: str) -> list[Messages]:
    """Finds every answer of a row's conversation, each with all that came before it.

    Source: Nie et al., arXiv:2502.09992 (LLaDA), appendix: dialogues are trained on turn by turn.

    Raises:
        ValueError: naming the row, which has no such conversation, or one without an answer.
    """
    value = row.get(key)
    if not isinstance(value, list) or not all(map(_is_message, value)):
        found = f"{type(value).__name__} at {key!r}" if key in row else f"keys {', '.join(row)}"
        raise ValueError(
            f"{source}: found {found}; data.messages_key={key} needs a list of objects with the "
            "strings 'role' and 'content'"
        )
    items = tuple({"role": item["role"], "content": item["content"]} for item in value)
    # A greeting that nobody asked for is no answer.
    ends = [n for n, item in enumerate(items, start=1) if item["role"] == ASSISTANT and n > 1]
    if not ends:
        raise ValueError(
            f"{source}: {key!r} has no message whose role is {ASSISTANT!r} after another one"
        )
    return [Messages(items[:end]) for end in ends]


def render(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, *, source: str
) -> tuple[str, str]:
    """Prompt and answer as the tokenizer's chat template writes them, special tokens spelled out.

    Raises:
        ValueError: there is no template, it does not write the prompt of an answer as it writes
            the conversation with it, or a message spells out a special token.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "data.messages_key needs a tokenizer with a chat template, and the student's has none; "
            "put chat_template.jinja into its folder, or use data.prompt_keys and data.answer_keys"
        )
    for item in messages.items:
        for token in tokenizer.all_special_tokens:
            if token in item["content"]:
                raise ValueError(
                    f"{source}: a message spells out the special token {token!r}, which would "
                    "become that token; leave the row out or change its text"
                )
    items = [dict(item) for item in messages.items]
    try:
        prompt = tokenizer.apply_chat_template(
            items[:-1], tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(items, tokenize=False)
    except jinja2.TemplateError as error:
        raise ValueError(f"{source}: the tokenizer's chat template says: {error}") from error
    assert isinstance(prompt, str) and isinstance(whole, str)
    if not whole.startswith(prompt):
        raise ValueError(
            f"{source}: the tokenizer's chat template writes an answer's prompt in another way "
            "than the conversation with the answer, so where the answer begins is not known; use "
            "data.prompt_keys and data.answer_keys"
        )
    return prompt, whole[len(prompt) :]


def _is_message(item: object) -> bool:
    return isinstance(item, Mapping) and all(
        isinstance(item.get(name), str) for name in ("role", "content")
    )
