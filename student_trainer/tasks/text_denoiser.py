"""A denoiser that answers texts with texts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from masked_diffusion.families import Denoiser
from student_trainer.tasks.decoding import decoding_of, read_task_request
from student_trainer.tasks.generation import GenerationRequest, generate
from student_trainer.tasks.model_args import LmOptions
from student_trainer.tasks.prompts import PromptEncoder

logger = logging.getLogger(__name__)


class TextDenoiser:
    """Continues contexts; what both lm-eval's model and our code tasks stand on."""

    def __init__(self, denoiser: Denoiser, options: LmOptions) -> None:
        """Takes a denoiser in evaluation mode; of the options, `model` is not read.

        Raises:
            ValueError: no tokenizer, or one without the token that is to begin prompts.
        """
        if denoiser.tokenizer is None:
            raise ValueError(f"{denoiser.info.name} was saved without a tokenizer; tasks need it")
        self.denoiser = denoiser
        self.prompts = PromptEncoder(denoiser.tokenizer, add_bos_token=options.add_bos_token)
        limit = denoiser.info.max_length
        self.max_length = min(options.max_length or limit, limit)
        self._options = options.generation

    def generate_texts(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Continues contexts as their `generation_kwargs` ask and the options say.

        A context that is too long loses its beginning.

        Raises:
            ValueError: what is asked cannot be honoured, or leaves a context no room.
        """
        generation_requests = []
        for context, asked in requests:
            decoding = decoding_of(self._options, read_task_request(asked), self.denoiser.info)
            room = self.max_length - decoding.max_new_tokens
            if room < 1:
                raise ValueError(
                    f"max_new_tokens must be below {self.max_length}, the positions of a prompt "
                    f"and its answer with {self.denoiser.info.name}, got {decoding.max_new_tokens}"
                )
            prompt_ids = self.keep_last(self.prompts.encode(context), room)
            generation_requests.append(
                GenerationRequest(prompt_ids=tuple(prompt_ids), decoding=decoding)
            )
        return generate(
            self.denoiser,
            generation_requests,
            seed=self._options.seed,
            batch_size=self._options.batch_size,
        )

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """See `PromptEncoder.apply_chat_template`."""
        return self.prompts.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt
        )

    def keep_last(self, ids: list[int], room: int) -> list[int]:
        """Cuts the beginning of a context off that is longer than the room for it."""
        if len(ids) <= room:
            return ids
        logger.warning("cut a context num_tokens=%d max_tokens=%d", len(ids), room)
        return ids[len(ids) - room :]
