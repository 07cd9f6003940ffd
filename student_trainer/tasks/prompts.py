"""Texts as a denoiser's tokens, and the other way round for chats."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase


class PromptEncoder:
    """Encodes the texts of tasks, with a token before them that begins a text or without."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, add_bos_token: bool | None = None
    ) -> None:
        """Finds the token that begins a text.

        Args:
            tokenizer: Of the denoiser.
            add_bos_token: None does as the tokenizer itself.

        Raises:
            ValueError: it is to be added and there is none.
        """
        self.tokenizer = tokenizer
        self.first_token_id = _first_token_id(tokenizer)
        """The token that begins a text, or what stands in for it; None where there is no such."""
        if add_bos_token and self.first_token_id is None:
            raise ValueError(
                f"add_bos_token must be false with {tokenizer.name_or_path}, whose tokenizer has "
                "no token that begins or ends a text"
            )
        if add_bos_token is None:
            encoded = tokenizer("a", verbose=False)["input_ids"]
            add_bos_token = encoded[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
        self._add_bos_token = add_bos_token

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What stands before a text that has no context."""
        return () if self.first_token_id is None else (self.first_token_id,)

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Encodes a text; special tokens written in it count as such, as in chats.

        Args:
            text: May begin with the token that begins a text, which is not put twice.
            begins: False for one that continues another.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if begins and self._add_bos_token and ids[:1] != [self.first_token_id]:
            assert self.first_token_id is not None
            return [self.first_token_id, *ids]
        return ids

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """Writes a chat as the tokenizer's template says.

        Args:
            messages: With role and content.
            add_generation_prompt: Begin the answer; else the last message is one already begun.

        Raises:
            ValueError: no template.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{self.tokenizer.name_or_path} has no chat template; leave apply_chat_template out"
            )
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text


def _first_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    for name in ("bos_token_id", "cls_token_id", "eos_token_id"):
        token_id: int | None = getattr(tokenizer, name)
        if token_id is not None:
            return token_id
    return None
