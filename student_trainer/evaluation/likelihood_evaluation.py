"""Held-out NELBO of every model under the same masks, and paired differences."""

import itertools
import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from masked_diffusion.families import Denoiser
from student_trainer.evaluation import figures
from student_trainer.evaluation.evaluation import Drawing, Evaluation, Section
from student_trainer.evaluation.intervals import (
    PairedDifference,
    paired_difference,
    ratio_ci95_half_width,
)
from student_trainer.evaluation.likelihood import NelboResult, nelbo
from student_trainer.evaluation.passages import decode
from student_trainer.evaluation.subjects import HeldOut, Setting, Subject
from student_trainer.report_text import Table, outcome


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The bound of one model."""

    model: str
    nats_per_token: float
    """Mean over sequences of each one's mean."""
    ci95: float
    bits_per_byte: float
    """Of all text together: comparable between tokenizers."""
    bits_per_byte_ci95: float
    num_sequences: int
    num_tokens: int
    """Tokens that may be masked; prompts and special tokens are not among them."""
    num_bytes: int
    """Bytes of these tokens' text in UTF-8."""
    nats_per_token_by_sequence: list[float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model minus another, over the same sequences and masks."""

    model: str
    minus: str
    difference: PairedDifference


class LikelihoodEvaluation(Evaluation):
    """The likelihood bound."""

    title = "Held-out likelihood"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._measured: dict[str, tuple[Subject, Likelihood]] = {}

    def refusal(self, subject: Subject) -> str | None:
        if subject.info.noise != "absorbing":
            return (
                f"{subject.name} has {subject.info.noise} noise, and this bound holds for masks "
                "only"
            )
        return None

    def measure(self, subject: Subject, denoiser: Denoiser, *, teacher: Denoiser | None) -> None:
        held_out = self.setting.held_out(subject)
        result = nelbo(denoiser, held_out.states, batch_size=self.setting.config.batch_size)
        self._measured[subject.name] = (subject, _likelihood(subject.name, result, held_out))

    def conclude(self) -> Section:
        found = [likelihood for _, likelihood in self._measured.values()]
        differences = self._differences()
        return Section(
            title=self.title,
            values={
                "masks_per_sequence": self.setting.config.masks_per_sequence,
                "models": [asdict(likelihood) for likelihood in found],
                "differences": [asdict(difference) for difference in differences],
            },
            tables=[_table(found), *([_difference_table(differences)] if differences else [])],
            drawings=[_drawing(found, differences, names=self.setting.names)],
            reading=[
                "NELBO is an upper bound on the negative log-likelihood; lower is better. It says "
                "how well a model knows the text, not how well a sampler of few steps writes: a "
                "model distilled for few steps gets a worse one by design.",
                "Compare models by the paired differences, whose intervals leave out what the "
                "sequences and masks have in common, not by whether the intervals of two models "
                "overlap. Models of different tokenizers are not paired: compare bits per byte.",
                "Intervals cover the choice of sequences and masks, not another training run; "
                "pieces of one document are taken as independent, and with many models some "
                "difference leaves zero out by chance.",
            ],
        )

    def _differences(self) -> list[Difference]:
        pairs = itertools.combinations(self._measured.values(), 2)
        return [
            Difference(
                model=second.model,
                minus=first.model,
                difference=paired_difference(
                    second.nats_per_token_by_sequence, first.nats_per_token_by_sequence
                ),
            )
            for (one, first), (other, second) in pairs
            if one.vocabulary == other.vocabulary
        ]


def _likelihood(name: str, result: NelboResult, held_out: HeldOut) -> Likelihood:
    num_tokens_N, num_bytes_N = _sizes(held_out)
    bits_N = result.per_sequence * num_tokens_N / math.log(2)
    return Likelihood(
        model=name,
        nats_per_token=result.mean,
        ci95=result.ci95,
        bits_per_byte=float(bits_N.sum() / num_bytes_N.sum()),
        bits_per_byte_ci95=ratio_ci95_half_width(bits_N, num_bytes_N),
        num_sequences=len(num_tokens_N),
        num_tokens=int(num_tokens_N.sum()),
        num_bytes=int(num_bytes_N.sum()),
        nats_per_token_by_sequence=result.per_sequence.tolist(),
    )


def _sizes(held_out: HeldOut) -> tuple[np.ndarray, np.ndarray]:
    """Maskable tokens of each sequence, and the bytes of their text in UTF-8: [N] each."""
    states = held_out.states
    first_N = torch.searchsorted(states.sequences_B, torch.arange(states.num_sequences))
    texts = [
        decode(held_out.tokenizer, x0_L[maskable_L])
        for x0_L, maskable_L in zip(states.x0_BL[first_N], states.maskable_BL[first_N], strict=True)
    ]
    return (
        states.maskable_BL[first_N].sum(dim=1).numpy(),
        np.array([len(text.encode()) for text in texts]),
    )


def _table(found: list[Likelihood]) -> Table:
    return Table(
        title="Held-out NELBO",
        header=["model", "nats/token", "bits/byte", "sequences", "tokens"],
        rows=[
            [
                one.model,
                f"{one.nats_per_token:.4f} ± {one.ci95:.4f}",
                f"{one.bits_per_byte:.4f} ± {one.bits_per_byte_ci95:.4f}",
                f"{one.num_sequences:,}",
                f"{one.num_tokens:,}",
            ]
            for one in found
        ],
        note="± is half of a 95 % interval over sequences.",
    )


def _difference_table(differences: list[Difference]) -> Table:
    return Table(
        title="Held-out NELBO, paired differences",
        header=["model", "minus", "nats/token", "relative", "the model is"],
        rows=[
            [
                one.model,
                one.minus,
                f"{one.difference.mean:+.4f} ± {one.difference.ci95:.4f}",
                f"{one.difference.relative:+.2%}",
                outcome(one.difference),
            ]
            for one in differences
        ],
        note="Over the same sequences and masks; negative is better.",
    )


def _drawing(
    found: list[Likelihood], differences: list[Difference], *, names: list[str]
) -> Drawing:
    return Drawing(
        name="likelihood",
        title="Held-out NELBO",
        caption="Left: the bound of each model. Right: paired differences; an interval that "
        "crosses zero is no difference. Intervals are 95 %.",
        figure=figures.likelihood(found, differences, names=names),
    )
