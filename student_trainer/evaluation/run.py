"""One evaluation, from configuration to report; models are loaded one by one."""

import dataclasses
import logging
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import torch
import transformers

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from student_trainer.evaluation.config import EvaluationConfig
from student_trainer.evaluation.device import find_device
from student_trainer.evaluation.evaluation import Evaluation, Section
from student_trainer.evaluation.report_model import EvaluationReport, ModelFacts, Skipped
from student_trainer.evaluation.subjects import Setting, Subject, read_subjects
from student_trainer.evaluation.table import EVALUATIONS

logger = logging.getLogger(__name__)


def run(config: EvaluationConfig) -> EvaluationReport:
    """Evaluates all models.

    Everything that can be found wrong without weights is found before any model is loaded.

    Raises:
        ValueError: an evaluation, a model, the data or a setting that cannot be had.
    """
    started_s = time.monotonic()
    setting = Setting(config, read_subjects(config))
    evaluations = {name: EVALUATIONS[name](setting) for name in _names(config)}
    skipped = _skipped(evaluations, setting)
    passed_over = {(one.evaluation, one.model) for one in skipped}
    work = {
        name: [s for s in _subjects(found, setting) if (name, s.name) not in passed_over]
        for name, found in evaluations.items()
    }
    asked = [name for name, subjects in work.items() if subjects]
    for name in asked:
        evaluations[name].prepare(work[name])
    for name in asked:
        evaluations[name].load_judges()
    facts = _measure_all(evaluations, work, setting)
    sections = {name: evaluations[name].conclude() for name in asked}
    return _report(config, facts, sections, skipped, total_s=time.monotonic() - started_s)


def _names(config: EvaluationConfig) -> Sequence[str]:
    """Those asked for, else all that are given what they need."""
    return [
        name
        for name, kind in EVALUATIONS.items()
        if (name in config.evaluations if config.evaluations else getattr(config, kind.needs))
    ]


def _subjects(evaluation: Evaluation, setting: Setting) -> list[Subject]:
    return [s for s in setting.subjects if evaluation.measures_teacher or not s.is_teacher]


def _skipped(evaluations: dict[str, Evaluation], setting: Setting) -> list[Skipped]:
    """What does not apply; asked for by name, an evaluation must apply to every model."""
    skipped = []
    for name, evaluation in evaluations.items():
        for subject in _subjects(evaluation, setting):
            reason = evaluation.refusal(subject)
            if reason is None:
                continue
            if name in setting.config.evaluations:
                raise ValueError(
                    f"--evaluations {name} does not apply to {subject.name}: {reason}; leave it "
                    "out of --evaluations, or the model out"
                )
            skipped.append(Skipped(evaluation=name, model=subject.name, reason=reason))
    return skipped


def _measure_all(
    evaluations: dict[str, Evaluation], work: dict[str, list[Subject]], setting: Setting
) -> list[ModelFacts]:
    facts, teacher = [], None
    for number, subject in enumerate(setting.subjects, start=1):
        logger.info(
            "model %d of %d: loading name=%s source=%s",
            number,
            len(setting.subjects),
            subject.name,
            subject.spec.source,
        )
        denoiser = _load(subject, setting.config)
        facts.append(_facts(subject, denoiser))
        if subject.is_teacher:
            teacher = denoiser
        for name in (name for name, subjects in work.items() if subject in subjects):
            started_s = time.monotonic()
            evaluations[name].measure(subject, denoiser, teacher=teacher)
            logger.info(
                "measured model=%s evaluation=%s seconds=%.1f",
                subject.name,
                name,
                time.monotonic() - started_s,
            )
        # Before the next one is loaded.
        del denoiser
    return facts


def _load(subject: Subject, config: EvaluationConfig) -> Denoiser:
    return subject.spec.load(
        device=find_device(config.device),
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        run_self_test=not config.skip_self_test,
    )


def _facts(subject: Subject, denoiser: Denoiser) -> ModelFacts:
    info, spec = denoiser.info, subject.spec
    return ModelFacts(
        name=subject.name,
        is_teacher=subject.is_teacher,
        source=spec.source,
        hub_revision=spec.revision,
        revision=checkpoints.weights_digest(denoiser),
        family=info.family,
        num_parameters=info.num_parameters,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        mask_token_id=info.mask_token_id,
        alignment=info.alignment,
        attention=info.attention,
        block_length=info.block_length,
        noise=info.noise,
        dtype=str(denoiser.head_weight.dtype).removeprefix("torch."),
        adapters=list(spec.adapter),
        quantization=spec.quantization,
    )


def _report(
    config: EvaluationConfig,
    facts: list[ModelFacts],
    sections: dict[str, Section],
    skipped: list[Skipped],
    *,
    total_s: float,
) -> EvaluationReport:
    return EvaluationReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=dataclasses.asdict(config),
        software={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
            "device": str(find_device(config.device)),
            "num_cores": os.cpu_count() or 1,
            "num_threads": torch.get_num_threads(),
        },
        models=facts,
        sections=sections,
        skipped=skipped,
        total_s=total_s,
    )
