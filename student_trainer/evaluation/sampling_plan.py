"""Sampling for evaluation: start states, samplers, and what was written at what cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masked_diffusion.families import Denoiser, DenoiserInfo
from masked_diffusion.samplers import SamplerConfig, check_fits
from masked_diffusion.sampling import sample
from student_trainer.data import TokenizedDataset
from student_trainer.evaluation.forwards import evaluating
from student_trainer.evaluation.sampler_spec import SamplerSpec
from student_trainer.evaluation.states import draw_rows


@dataclass(frozen=True, kw_only=True)
class StartStates:
    """Rows of one length, of which the beginning is given and the rest is to be written."""

    x0_BL: Tensor
    """[B, L] int64: the held-out sequences."""
    num_given_B: Tensor
    """[B] int64, below L: leading special tokens, a prompt, and what was asked for besides."""

    def frozen(self) -> Tensor:
        """Marks what is given: [B, L] bool."""
        return torch.arange(self.x0_BL.shape[1]) < self.num_given_B[:, None]


def draw_start_states(
    dataset: TokenizedDataset,
    *,
    info: DenoiserInfo,
    num_samples: int,
    length: int,
    prompt_tokens: int,
    seed: int,
) -> StartStates:
    """Draws held-out sequences of at least `length` tokens, cut to it.

    Raises:
        ValueError: too few of them.
    """

    def num_given(row: int) -> int:
        head = dataset.sequence(row)[:1].tolist()
        lead = max(int(head[0] in info.special_token_ids), info.num_invalid_leading_positions)
        return max(lead + prompt_tokens, int(dataset.prompt_lengths[row]))

    def is_eligible(row: int) -> bool:
        return len(dataset.sequence(row)) >= length and num_given(row) < length

    rows = draw_rows(
        dataset,
        is_eligible=is_eligible,
        num_sequences=num_samples,
        seed=seed,
        mend=f"samples are compared with as many held-out sequences of --gen_length {length} "
        "tokens: lower --num_samples or --gen_length, or give more text",
    )
    return StartStates(
        x0_BL=torch.stack(
            [torch.from_numpy(dataset.sequence(row)[:length].astype("int64")) for row in rows]
        ),
        num_given_B=torch.tensor([num_given(row) for row in rows]),
    )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a sampler wrote, and what it cost."""

    x_BL: Tensor
    """[B, L] int64, finished states."""
    num_forwards: float
    """Of a sequence, mean; two a step with guidance."""
    seconds: float
    """Wall time of a sequence: of all, by their number."""


def write(
    denoiser: Denoiser,
    x_BL: Tensor,
    *,
    frozen_BL: Tensor,
    lengths_B: Tensor,
    config: SamplerConfig,
    seed: int,
    batch_size: int,
) -> Written:
    """Samples all rows, batch by batch; row i has the key (seed, i) in every model."""
    parts, num_forwards = [], 0
    started_s = time.perf_counter()
    with evaluating(denoiser):
        for start in range(0, len(x_BL), batch_size):
            rows = slice(start, start + batch_size)
            ids = range(len(x_BL))[rows]
            width = int(lengths_B[rows].max())
            result = sample(
                denoiser,
                x_BL[rows, :width],
                frozen_BL=frozen_BL[rows, :width],
                lengths_B=lengths_B[rows],
                config=config,
                seeds=[seed] * len(ids),
                sequence_ids=list(ids),
            )
            padding = x_BL.shape[1] - width
            parts.append(torch.nn.functional.pad(result.x.cpu(), (0, padding)))
            num_forwards += int(result.num_forwards_B.sum())
    seconds = time.perf_counter() - started_s
    return Written(
        x_BL=torch.cat(parts),
        num_forwards=num_forwards / len(x_BL),
        seconds=seconds / len(x_BL),
    )


@dataclass(frozen=True, kw_only=True)
class SamplerChoice:
    """Samplers, sorted by whether a denoiser can be sampled with them."""

    fitting: list[SamplerSpec]
    """At least one."""
    reasons: dict[str, str]
    """Label of each that does not fit -> why."""


def choose_samplers(
    specs: Sequence[SamplerSpec], info: DenoiserInfo, *, num_steps: int, temperature: float
) -> SamplerChoice:
    """Sorts them; the numbers of steps and temperature decide nothing.

    Raises:
        ValueError: none fits; the message says why not the first.
    """
    fitting, reasons = [], {}
    for spec in specs:
        config = spec.config(num_steps, temperature=temperature)
        try:
            check_fits(config, info)
        except ValueError as error:
            reasons[spec.label] = str(error)
        else:
            fitting.append(spec)
    if not fitting:
        label, reason = next(iter(reasons.items()))
        raise ValueError(f"sampler {label!r} does not fit {info.name}: {reason}")
    return SamplerChoice(fitting=fitting, reasons=reasons)


def default_samplers(info: DenoiserInfo) -> tuple[str, ...]:
    """The curve's samplers where none is asked for."""
    if info.noise == "uniform":
        return ("multinomial",)
    # A later block drawn behind masks of an earlier one is a state that it was not trained on.
    return (
        ("low_confidence",)
        if info.attention == "block_causal"
        else (
            "ancestral",
            "low_confidence",
        )
    )


def default_infilling_sampler(info: DenoiserInfo) -> str:
    """The in-filling's sampler where none is asked for.

    low_confidence deals positions evenly over steps; the schedule of entropy and its like rounds
    down, so that of as many steps as tokens some are idle and the last one takes several.
    """
    return "multinomial" if info.noise == "uniform" else "low_confidence"
