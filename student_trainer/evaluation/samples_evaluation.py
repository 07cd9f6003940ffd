"""The steps-against-quality curve: what models write in few and in many steps."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from student_trainer.evaluation import figures, samples_text
from student_trainer.evaluation.curve_point import Cost, CurvePoint, perplexity_of
from student_trainer.evaluation.device import find_device
from student_trainer.evaluation.evaluation import Drawing, Evaluation, Example, Section
from student_trainer.evaluation.passages import Scorer
from student_trainer.evaluation.sample_set import (
    SampleSet,
    diversity,
    passages_as_rows,
    sample_set,
)
from student_trainer.evaluation.sampler_spec import parse_sampler
from student_trainer.evaluation.sampling_plan import (
    SamplerChoice,
    StartStates,
    Written,
    choose_samplers,
    default_samplers,
    draw_start_states,
    write,
)
from student_trainer.evaluation.scorers import load_scorer
from student_trainer.evaluation.subjects import Setting, Subject

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Written:
    model: str
    sampler: str | None
    num_steps: int | None
    cost: Cost | None
    samples: SampleSet


class SamplesEvaluation(Evaluation):
    """Perplexity, diversity and cost of samples."""

    title = "Steps against quality"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._asked = [parse_sampler(text) for text in setting.config.samplers]
        self._scorers: list[Scorer] = []
        self._starts: dict[tuple[object, ...], StartStates] = {}
        self._references: dict[tuple[object, ...], _Written] = {}
        self._written: list[_Written] = []
        self._left_out: list[dict[str, str]] = []

    def refusal(self, subject: Subject) -> str | None:
        return None

    def prepare(self, subjects: Sequence[Subject]) -> None:
        for subject in subjects:
            for label, reason in self._choice(subject).reasons.items():
                self._left_out.append({"model": subject.name, "sampler": label, "reason": reason})
            self._draw_start(subject)

    def load_judges(self) -> None:
        config = self.setting.config
        device = find_device(config.device)
        self._scorers = [load_scorer(text, config, device=device) for text in config.scorer]

    def measure(self, subject: Subject, denoiser: Denoiser, *, teacher: Denoiser | None) -> None:
        config, start = self.setting.config, self._starts[subject.vocabulary]
        points = [
            (spec, num_steps)
            for spec in self._choice(subject).fitting
            for num_steps in config.steps
        ]
        first = points[0][0].config(1, temperature=config.temperature)
        # What a first forward sets up is not the price of the first point.
        self._write(subject, denoiser, first, num_samples=config.batch_size)
        num_written = float((~start.frozen()).sum() / len(start.x0_BL))
        for spec, num_steps in points:
            sampler_config = spec.config(num_steps, temperature=config.temperature)
            written = self._write(subject, denoiser, sampler_config)
            self._written.append(
                _Written(
                    model=subject.name,
                    sampler=spec.label,
                    num_steps=num_steps,
                    cost=Cost(
                        num_forwards=written.num_forwards,
                        seconds=written.seconds,
                        tokens_per_forward=num_written / written.num_forwards,
                    ),
                    samples=self._sample_set(subject, written.x_BL),
                )
            )
            logger.info(
                "sampled model=%s sampler=%s num_steps=%d seconds_per_sample=%.4f",
                subject.name,
                spec.label,
                num_steps,
                written.seconds,
            )

    def conclude(self) -> Section:
        written = [*self._references.values(), *self._written]
        points = [self._point(one) for one in written]
        config = self.setting.config
        scorers = [(scorer.name, scorer.kind) for scorer in self._scorers]
        return Section(
            title=self.title,
            values={
                "num_samples": config.num_samples,
                "gen_length": config.gen_length,
                "prompt_tokens": config.prompt_tokens,
                "batch_size": config.batch_size,
                "scorers": [{"scorer": name, "kind": kind} for name, kind in scorers],
                "left_out": self._left_out,
                "points": [asdict(point) for point in points],
            },
            tables=samples_text.tables(points, scorers),
            drawings=[
                Drawing(
                    name=f"samples_{number}" if scorer else "samples",
                    title=f"Quality, diversity and cost under {scorer}" if scorer else "Diversity",
                    caption=samples_text.CAPTION if scorer else samples_text.PLAIN_CAPTION,
                    figure=figures.samples(points, scorer=scorer, names=self.setting.names),
                )
                for number, scorer in enumerate([name for name, _ in scorers] or [None])
            ],
            reading=[
                *samples_text.reading(bool(scorers)),
                *(
                    f"Left out: {one['sampler']} of {one['model']}: {one['reason']}"
                    for one in self._left_out
                ),
            ],
            examples=[Example(title=_label(one), text=_first_text(one.samples)) for one in written],
            files={
                "samples.jsonl": [
                    row
                    for one in written
                    for row in passages_as_rows(
                        one.samples, model=one.model, sampler=one.sampler, num_steps=one.num_steps
                    )
                ]
            },
        )

    def _choice(self, subject: Subject) -> SamplerChoice:
        config = self.setting.config
        asked = self._asked or [parse_sampler(name) for name in default_samplers(subject.info)]
        return choose_samplers(
            asked, subject.info, num_steps=config.steps[0], temperature=config.temperature
        )

    def _draw_start(self, subject: Subject) -> None:
        if subject.vocabulary in self._starts:
            return
        config, held_out = self.setting.config, self.setting.held_out(subject)
        start = draw_start_states(
            held_out.dataset,
            info=held_out.info,
            num_samples=config.num_samples,
            length=config.gen_length,
            prompt_tokens=config.prompt_tokens,
            seed=config.seed,
        )
        self._starts[subject.vocabulary] = start
        sharing = ", ".join(other.name for other in self.setting.sharing(subject))
        is_only = len(self.setting.sharing(subject)) == len(self.setting.subjects)
        self._references[subject.vocabulary] = _Written(
            model="held-out text" if is_only else f"held-out text in the tokens of {sharing}",
            sampler=None,
            num_steps=None,
            cost=None,
            samples=self._sample_set(subject, start.x0_BL),
        )

    def _write(
        self,
        subject: Subject,
        denoiser: Denoiser,
        config: SamplerConfig,
        *,
        num_samples: int | None = None,
    ) -> Written:
        start = self._starts[subject.vocabulary]
        frozen_BL = start.frozen()[:num_samples]
        x0_BL = start.x0_BL[:num_samples]
        return write(
            denoiser,
            x0_BL.masked_fill(~frozen_BL, subject.info.mask_token_id),
            frozen_BL=frozen_BL,
            lengths_B=torch.full((len(x0_BL),), x0_BL.shape[1]),
            config=config,
            seed=self.setting.config.seed,
            batch_size=self.setting.config.batch_size,
        )

    def _sample_set(self, subject: Subject, x_BL: Tensor) -> SampleSet:
        return sample_set(
            x_BL,
            num_given_B=self._starts[subject.vocabulary].num_given_B,
            info=self.setting.held_out(subject).info,
            tokenizer=subject.tokenizer,
            keep_after_eos=self.setting.config.keep_after_eos,
        )

    def _point(self, written: _Written) -> CurvePoint:
        batch_size = self.setting.config.batch_size
        logger.info("scoring %s", _label(written))
        return CurvePoint(
            model=written.model,
            sampler=written.sampler,
            num_steps=written.num_steps,
            cost=written.cost,
            diversity=diversity(written.samples),
            perplexities=[
                perplexity_of(scorer.score(written.samples.passages, batch_size=batch_size), scorer)
                for scorer in self._scorers
            ],
        )


def _label(written: _Written) -> str:
    if written.sampler is None:
        return written.model
    return f"{written.model}, {written.sampler}, {written.num_steps} steps"


def _first_text(samples: SampleSet) -> str:
    passage = samples.passages[0]
    return passage.given + passage.text
