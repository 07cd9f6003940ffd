"""Which rows of which dataset are read, and where in a row its texts are."""

from dataclasses import dataclass

PROMPT_KEYS = ("prompt", "answer")
"""The one pair of text keys that names two parts of a row instead of two alternatives."""


@dataclass(frozen=True, kw_only=True)
class HubSelection:
    """Which part of a hub's dataset, or of a saved one, is read."""

    subset: str | None = None
    """Its configuration; None = the only one."""
    split: str = "train"
    """Name of the split, or a slice of it such as train[:1%]."""
    revision: str | None = None
    """Branch, tag or commit; None = the newest."""


@dataclass(frozen=True, kw_only=True)
class RowKeys:
    """Where in a row its texts are."""

    text: tuple[str, ...] = ("text",)
    """Alternatives, the first one present is taken; exactly (prompt, answer) is the pair."""
    prompt: tuple[str, ...] = ()
    """Parts of a prompt, joined by an empty line; missing and empty ones are left out."""
    answer: tuple[str, ...] = ()
    """Alternatives for the answer to it."""
    messages: str = ""
    """The conversation, a list of {role, content}; empty = there is none."""

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("data.text_keys is empty; name at least one key, for example 'text'")
        if bool(self.prompt) != bool(self.answer):
            raise ValueError(
                f"data.prompt_keys is {list(self.prompt)} and data.answer_keys is "
                f"{list(self.answer)}; give both or neither"
            )
        if self.prompt and self.messages:
            raise ValueError(
                f"data.messages_key is {self.messages!r} and data.prompt_keys is "
                f"{list(self.prompt)}; give one of them"
            )

    @property
    def pair(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Keys of prompt and answer, where a row is such a pair."""
        if self.prompt:
            return self.prompt, self.answer
        return (PROMPT_KEYS[:1], PROMPT_KEYS[1:]) if self.text == PROMPT_KEYS else None
