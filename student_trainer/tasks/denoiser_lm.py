"""Our denoisers as a model of lm-eval, by the name `dllm`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from masked_diffusion.families import Denoiser
from student_trainer.tasks.likelihood import Continuation, are_greedy, log_likelihoods
from student_trainer.tasks.loading import load_model
from student_trainer.tasks.model_args import LmOptions, read_model_args
from student_trainer.tasks.text_denoiser import TextDenoiser


@register_model("dllm")
class DenoiserLM(TemplateLM):
    """A masked-diffusion denoiser of any of our families.

    `lm-eval run --model dllm --model_args pretrained=PATH,steps=64,...`; see `read_model_args`.
    """

    def __init__(self, **model_args: Any) -> None:
        """Loads a checkpoint and takes its options, under lm-eval's names or ours.

        Raises:
            ValueError: unknown or unusable arguments; see also `load_denoiser`.
        """
        options = read_model_args(model_args)
        self._set_up(load_model(options.model), options)

    @classmethod
    def of(cls, denoiser: Denoiser, options: LmOptions) -> Self:
        """Wraps a denoiser that is loaded already, in evaluation mode."""
        lm = cls.__new__(cls)
        lm._set_up(denoiser, options)
        return lm

    def _set_up(self, denoiser: Denoiser, options: LmOptions) -> None:
        super().__init__()
        self.texts = TextDenoiser(denoiser, options)
        self.denoiser = denoiser
        self.options = options
        self.tokenizer = self.texts.prompts.tokenizer
        self.max_length = self.texts.max_length
        self._device = denoiser.device

    @property
    def eot_token_id(self) -> int:
        """The end of a text; lm-eval notes it beside its results."""
        return self.denoiser.info.eos_token_id  # type: ignore[return-value]

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keeps prepared requests under."""
        return self.denoiser.info.name.replace("/", "__")

    @property
    def batch_size(self) -> int:
        return self.options.generation.batch_size

    def get_model_info(self) -> dict[str, Any]:
        """What stands beside the results: the denoiser's facts and all options."""
        return {"denoiser": asdict(self.denoiser.info), "options": asdict(self.options)}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        return self.texts.prompts.encode(string, begins=add_special_tokens is not False)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.texts.apply_chat_template(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores continuations of contexts: the bound, and whether greedy sampling writes them."""
        pairs = [request.args for request in requests]
        continuations = [self._continuation(*pair) for pair in pairs]
        answers = self._score(continuations)
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts; one that is too long is cut, each piece after the token before it."""
        texts = [request.args[0] for request in requests]
        pieces = [self._pieces(text) for text in texts]
        scores = iter(
            log_likelihoods(
                self.denoiser, [piece for text in pieces for piece in text], self.options.likelihood
            )
        )
        totals = [sum(next(scores) for _ in text) for text in pieces]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues contexts, each by one run of a sampler."""
        pairs = [request.args for request in requests]
        answers = self.texts.generate_texts(pairs)
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("generate_until", pair, answer)
        return answers

    def _score(self, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """Scores continuations, of which an empty one is certain."""
        options = self.options.likelihood
        scored = [row for row, continuation in enumerate(continuations) if continuation.ids]
        chosen = [continuations[row] for row in scored]
        greedy = [False] * len(chosen)
        totals = log_likelihoods(self.denoiser, chosen, options)
        if options.check_greedy:
            greedy = are_greedy(self.denoiser, chosen, batch_size=options.batch_size)
        answers = [(0.0, True)] * len(continuations)
        for row, total, is_greedy in zip(scored, totals, greedy, strict=True):
            answers[row] = (total, is_greedy)
        return answers

    def _continuation(self, context: str, text: str) -> Continuation:
        if context:
            context_ids, ids = self._encode_pair(context, text)
        else:
            context_ids = list(self.texts.prompts.prefix_ids)
            ids = self.texts.prompts.encode(text, begins=False)
            if ids[:1] == context_ids:
                ids = ids[1:]
        room = max(self.max_length - len(ids), 0)
        return Continuation(
            context_ids=tuple(self.texts.keep_last(context_ids, room)), ids=tuple(ids)
        )

    def _pieces(self, text: str) -> list[Continuation]:
        ids = tuple(self.texts.prompts.encode(text, begins=False))
        pieces = []
        context_ids = self.texts.prompts.prefix_ids
        while ids:
            room = self.max_length - len(context_ids)
            pieces.append(Continuation(context_ids=context_ids, ids=ids[:room]))
            context_ids, ids = ids[room - 1 : room], ids[room:]
        return pieces

    def _loglikelihood_tokens(self, requests: object, **kwargs: object) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood is answered whole")
