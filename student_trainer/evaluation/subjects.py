"""Subjects: the models of an evaluation before their weights are loaded, and their vocabularies."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from masked_diffusion.blueprint import read_blueprint
from masked_diffusion.families import DenoiserInfo
from student_trainer.data import TokenizedDataset, load_dataset
from student_trainer.evaluation.config import EvaluationConfig
from student_trainer.evaluation.model_spec import ModelSpec, parse_model
from student_trainer.evaluation.states import EvaluationStates, held_out_states

TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One model, as far as its config and tokenizer tell."""

    spec: ModelSpec
    is_teacher: bool
    info: DenoiserInfo
    tokenizer: PreTrainedTokenizerBase

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def vocabulary(self) -> tuple[object, ...]:
        """Models that share it see the same states."""
        info = self.info
        return (info.tokenizer_fingerprint, info.vocab_size, info.mask_token_id, info.noise)


def read_subjects(config: EvaluationConfig) -> list[Subject]:
    """Reads what can be known of all models without a weight: the teacher first, if there is one.

    Raises:
        ValueError: a model that cannot be read or has no tokenizer, or two of one name.
    """
    specs = [(parse_model(text), False) for text in config.model]
    if config.teacher is not None:
        specs.insert(0, (parse_model(config.teacher, default_name=TEACHER), True))
    names = [spec.name for spec, _ in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two models are called {twice!r}; name them: --model NAME=PATH_OR_ID")
    return [
        read_subject(spec, is_teacher=is_teacher, trust_remote_code=config.trust_remote_code)
        for spec, is_teacher in specs
    ]


def read_subject(spec: ModelSpec, *, is_teacher: bool, trust_remote_code: bool) -> Subject:
    """Reads config and tokenizer; the errors of `read_blueprint`, and one without a tokenizer."""
    blueprint = read_blueprint(
        spec.folder(trust_remote_code=trust_remote_code),
        trust_remote_code=trust_remote_code,
        **spec.blueprint_options(),
    )
    if blueprint.tokenizer is None:
        raise ValueError(f"{spec.source} was saved without a tokenizer; evaluation needs one")
    info = blueprint.build_on_meta().info
    if blueprint.alignment_source == "unknown":
        # It may turn out shifted when it is loaded, and position 0 is then never predicted.
        info = dataclasses.replace(info, num_invalid_leading_positions=1)
    return Subject(spec=spec, is_teacher=is_teacher, info=info, tokenizer=blueprint.tokenizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Held-out sequences in the ids of one vocabulary, the same for all models that share it."""

    info: DenoiserInfo
    """What all of them can take: the shortest length, and no position that one cannot predict."""
    tokenizer: PreTrainedTokenizerBase
    dataset: TokenizedDataset
    config: EvaluationConfig

    @cached_property
    def states(self) -> EvaluationStates:
        """The fixed masks of likelihood and agreement."""
        return held_out_states(
            self.dataset,
            denoiser_info=self.info,
            num_sequences=min(self.config.num_sequences, len(self.dataset)),
            seed=self.config.seed,
            masks_per_sequence=self.config.masks_per_sequence,
        )


class Setting:
    """What all evaluations share: configuration, subjects and held-out data."""

    def __init__(self, config: EvaluationConfig, subjects: Sequence[Subject]) -> None:
        self.config = config
        self.subjects = list(subjects)
        self._held_out: dict[tuple[object, ...], HeldOut] = {}

    @property
    def names(self) -> list[str]:
        """Of all subjects, in their order."""
        return [subject.name for subject in self.subjects]

    @property
    def teacher(self) -> Subject | None:
        return next((subject for subject in self.subjects if subject.is_teacher), None)

    def sharing(self, subject: Subject) -> list[Subject]:
        """All subjects of one vocabulary, in their order."""
        return [other for other in self.subjects if other.vocabulary == subject.vocabulary]

    def held_out(self, subject: Subject) -> HeldOut:
        """The data in the subject's ids, tokenized once.

        Raises:
            ValueError: data that cannot be read, too few sequences, or sequences that are too long.
        """
        key = subject.vocabulary
        if key not in self._held_out:
            self._held_out[key] = self._read(self.sharing(subject))
        return self._held_out[key]

    def _read(self, subjects: Sequence[Subject]) -> HeldOut:
        config, first = self.config, subjects[0]
        infos = [subject.info for subject in subjects]
        for info in infos:
            if config.max_seq_len > info.max_length:
                raise ValueError(
                    f"--max_seq_len is {config.max_seq_len}, but {info.name} takes at most "
                    f"{info.max_length} positions; lower it"
                )
        dataset = load_dataset(
            config.data_path,
            text_keys=config.text_keys,
            keys=config.keys,
            selection=config.selection,
            tokenizer=first.tokenizer,
            max_seq_len=config.max_seq_len,
            min_chunk_tokens=config.min_chunk_tokens,
        )
        if len(dataset) < 2:  # noqa: PLR2004  no interval without two
            raise ValueError(
                f"--data_path {config.data_path} gives {len(dataset)} sequence of --max_seq_len "
                f"{config.max_seq_len} tokens; intervals need at least 2, so give more text"
            )
        special = {token_id for info in infos for token_id in info.special_token_ids}
        info = dataclasses.replace(
            first.info,
            name="held-out data",
            special_token_ids=tuple(sorted(special)),
            num_invalid_leading_positions=max(i.num_invalid_leading_positions for i in infos),
            max_length=min(i.max_length for i in infos),
        )
        return HeldOut(info=info, tokenizer=first.tokenizer, dataset=dataset, config=config)
