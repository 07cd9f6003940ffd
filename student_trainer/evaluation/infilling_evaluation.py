"""Exact match of in-filled spans, by their length."""

from collections.abc import Sequence
from dataclasses import asdict

from masked_diffusion.families import Denoiser
from student_trainer.evaluation import figures
from student_trainer.evaluation.evaluation import Drawing, Evaluation, Section
from student_trainer.evaluation.infilling import InfillingResult, Spans, draw_spans, infill_spans
from student_trainer.evaluation.sampler_spec import SamplerSpec, parse_sampler
from student_trainer.evaluation.sampling_plan import choose_samplers, default_infilling_sampler
from student_trainer.evaluation.subjects import Setting, Subject
from student_trainer.report_text import Table


class InfillingEvaluation(Evaluation):
    """How often a masked span comes back as it was."""

    title = "In-filling"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._spans: dict[tuple[object, ...], list[Spans]] = {}
        self._samplers: dict[str, str] = {}
        self._measured: dict[str, list[InfillingResult]] = {}

    def refusal(self, subject: Subject) -> str | None:
        return None

    def prepare(self, subjects: Sequence[Subject]) -> None:
        config = self.setting.config
        for subject in subjects:
            spec = self._sampler(subject)
            choose_samplers([spec], subject.info, num_steps=1, temperature=0)
            self._samplers[subject.name] = spec.label
            if subject.vocabulary not in self._spans:
                held_out = self.setting.held_out(subject)
                self._spans[subject.vocabulary] = [
                    draw_spans(
                        held_out.dataset,
                        info=held_out.info,
                        length=length,
                        num_spans=config.num_infills,
                        seed=config.seed,
                    )
                    for length in config.infilling_spans
                ]

    def measure(self, subject: Subject, denoiser: Denoiser, *, teacher: Denoiser | None) -> None:
        config, spec = self.setting.config, self._sampler(subject)
        self._measured[subject.name] = [
            infill_spans(
                denoiser,
                spans,
                config=spec.config(config.infilling_steps or spans.length, temperature=0),
                seed=config.seed,
                batch_size=config.batch_size,
            )
            for spans in self._spans[subject.vocabulary]
        ]

    def conclude(self) -> Section:
        return Section(
            title=self.title,
            values={
                "num_steps": self.setting.config.infilling_steps or "span length",
                "models": [
                    {
                        "model": name,
                        "sampler": self._samplers[name],
                        "spans": [asdict(result) for result in results],
                    }
                    for name, results in self._measured.items()
                ],
            },
            tables=[self._table()],
            drawings=[
                Drawing(
                    name="infilling",
                    title=self.title,
                    caption="Share of masked spans that came back exactly, by their length in "
                    "tokens. Bars are 95 % intervals (Wilson).",
                    figure=figures.infilling(self._measured, names=self.setting.names),
                )
            ],
            reading=[
                "As many masks are given as the original has tokens: the length is told, not "
                "found (an oracle length). Text that is right in another wording counts as wrong.",
                "Models of one tokenizer fill in the same spans. Tokens of another tokenizer are "
                "longer or shorter, so a span of 4 is not the same task there.",
            ],
        )

    def _sampler(self, subject: Subject) -> SamplerSpec:
        asked = self.setting.config.infilling_sampler
        return parse_sampler(asked or default_infilling_sampler(subject.info))

    def _table(self) -> Table:
        return Table(
            title="In-filling of held-out spans",
            header=[
                *("model", "sampler", "span", "exact match", "95 % interval"),
                *("token accuracy", "forwards", "s/span"),
            ],
            rows=[
                [
                    name,
                    self._samplers[name],
                    f"{result.span_length:,}",
                    f"{result.exact_match:.1%} ({result.num_exact} of {result.num_spans})",
                    f"{result.exact_match_low:.1%} to {result.exact_match_high:.1%}",
                    f"{result.token_accuracy:.1%} ± {result.token_accuracy_ci95:.1%}",
                    f"{result.num_forwards:.1f}",
                    f"{result.seconds:.4f}",
                ]
                for name, results in self._measured.items()
                for result in results
            ],
        )
