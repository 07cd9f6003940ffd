"""Scorers by their kind, as they are asked for: `ar:MODEL` or `masked:MODEL`."""

from collections.abc import Callable, Mapping

import torch

from student_trainer.evaluation.causal_scorer import CausalScorer
from student_trainer.evaluation.config import EvaluationConfig
from student_trainer.evaluation.masked_scorer import MaskedScorer
from student_trainer.evaluation.model_spec import ModelSpec, parse_model
from student_trainer.evaluation.passages import Scorer


def _causal(name: str, spec: ModelSpec, config: EvaluationConfig, device: torch.device) -> Scorer:
    return CausalScorer.load(
        spec,
        name=name,
        device=device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
    )


def _masked(name: str, spec: ModelSpec, config: EvaluationConfig, device: torch.device) -> Scorer:
    denoiser = spec.load(
        device=device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        run_self_test=not config.skip_self_test,
    )
    return MaskedScorer(
        denoiser, name=name, seed=config.seed, masks_per_passage=config.masks_per_sequence
    )


_KINDS: Mapping[str, Callable[[str, ModelSpec, EvaluationConfig, torch.device], Scorer]] = {
    "ar": _causal,
    "masked": _masked,
}


def load_scorer(text: str, config: EvaluationConfig, *, device: torch.device) -> Scorer:
    """Loads the scorer that `--scorer` names.

    Raises:
        ValueError: an unknown kind, or what the kinds' own loading refuses.
    """
    kind, spec = parse_scorer(text)
    return _KINDS[kind](text, spec, config, device)


def parse_scorer(text: str) -> tuple[str, ModelSpec]:
    """Reads a scorer's kind and model.

    Raises:
        ValueError: an unknown kind, or no model.
    """
    kind, colon, model = text.partition(":")
    if not colon or kind not in _KINDS:
        raise ValueError(
            "--scorer must be ar:MODEL (a causal language model) or masked:MODEL (a denoiser), "
            f"got {text!r}"
        )
    return kind, parse_model(model)
