"""What the demo measures after training: models on held-out states, the server, the wire."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.corpus import Corpus, read_sources
from student_trainer.data import TokenizedDataset
from student_trainer.demo_plan import DemoPlan
from student_trainer.demo_runs import Run
from student_trainer.evaluation.agreement import kl_to_teacher
from student_trainer.evaluation.intervals import paired_difference
from student_trainer.evaluation.likelihood import NelboResult, nelbo
from student_trainer.evaluation.states import EvaluationStates, held_out_states
from student_trainer.infill import FunctionGap, infill, pick_functions
from student_trainer.report_model import (
    Comparison,
    CurvePoint,
    EncodingCost,
    Estimate,
    InfillAnswer,
    InfillExample,
    ModelResult,
    Role,
    ServerFacts,
)

EVALUATION_SEED = 1234
_BATCH_SIZE = 64
_MAX_CURVE_POINTS = 300
_TOP_K = 64
_WIRE_MASK_FRACTION = 0.5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that comes from comparing the models."""

    models: list[ModelResult]
    comparisons: list[Comparison]
    infills: list[InfillExample]


def evaluate(
    runs: Mapping[Role, Run], dataset: TokenizedDataset, files: Corpus, plan: DemoPlan
) -> Evaluation:
    """Measures all models on the same states, and lets them fill in the same functions."""
    denoisers = {role: checkpoints.load_denoiser(str(run.model_path)) for role, run in runs.items()}
    teacher = denoisers["teacher"]
    states = held_out_states(
        dataset,
        denoiser_info=teacher.info,
        num_sequences=min(plan.num_held_out_sequences, len(dataset)),
        seed=EVALUATION_SEED,
        masks_per_sequence=plan.masks_per_sequence,
    )
    results = {
        role: nelbo(denoiser, states, batch_size=_BATCH_SIZE)
        for role, denoiser in denoisers.items()
    }
    student = results["student"].per_sequence
    return Evaluation(
        models=[
            _model_result(
                role,
                run=runs[role],
                denoiser=denoisers[role],
                result=result,
                teacher=teacher,
                states=states,
            )
            for role, result in results.items()
        ],
        comparisons=[
            Comparison(other=role, difference=paired_difference(student, result.per_sequence))
            for role, result in results.items()
            if role != "student"
        ],
        infills=_infills(denoisers, files, plan),
    )


def server_facts(address: str, dataset: TokenizedDataset, run: Run, cache: Path) -> ServerFacts:
    """What the server did for the run; kept beside a run that is reused, whose server is gone."""
    if run.reused and cache.is_file():
        stored = json.loads(cache.read_text(encoding="utf-8"))
        costs = [EncodingCost(**cost) for cost in stored.pop("encodings")]
        return ServerFacts(**stored, encodings=costs)
    with TeacherClient(address) as client:
        (load,) = client.load()
        facts = ServerFacts(
            peak_memory_mib=load.peak_rss_bytes / 2**20,
            batch_fill_fraction=load.num_forward_tokens / max(1, load.num_padded_tokens),
            tokens_per_s=load.num_forward_tokens / max(load.busy_s, 1e-9),
            encodings=_encoding_costs(client, dataset),
        )
    cache.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    return facts


def _encoding_costs(client: TeacherClient, dataset: TokenizedDataset) -> list[EncodingCost]:
    """Bytes a position of each encoding, on states that are half masked."""
    description = client.describe()
    generator = np.random.default_rng(EVALUATION_SEED)
    states = []
    for index in range(min(16, len(dataset))):
        ids = dataset.sequence(index).copy()
        masked = generator.random(len(ids)) < _WIRE_MASK_FRACTION
        masked[: description.num_invalid_leading_positions] = False
        ids[masked] = description.mask_token_id
        states.append(ids)
    costs = []
    for encoding in ("hidden", "top_k", "logits"):
        spec = wire.TargetSpec(encoding=encoding, top_k=_TOP_K)
        bytes_before = client.num_payload_bytes
        records = client.score(states, sequence_ids=range(len(states)), targets=spec)
        num_positions = sum(len(record.positions) for record in records)
        costs.append(
            EncodingCost(
                encoding=f"{encoding} (K={_TOP_K})" if encoding == "top_k" else encoding,
                bytes_per_position=(client.num_payload_bytes - bytes_before) / num_positions,
                used=encoding == "hidden",
            )
        )
    return costs


def _model_result(
    role: Role,
    *,
    run: Run,
    denoiser: Denoiser,
    result: NelboResult,
    teacher: Denoiser,
    states: EvaluationStates,
) -> ModelResult:
    metrics = run.metrics
    stride = max(1, len(metrics) // _MAX_CURVE_POINTS)
    distilled = role == "student"
    return ModelResult(
        role=role,
        num_parameters=denoiser.info.num_parameters,
        num_layers=int(denoiser.model.config.num_hidden_layers),
        hidden_size=denoiser.info.hidden_size,
        num_steps=len(metrics),
        train_s=run.train_s,
        tokens_per_s=sum(step["num_tokens"] for step in metrics) / run.train_s,
        teacher_wait_s=sum(step["teacher_wait_s"] for step in metrics) if distilled else 0.0,
        peak_memory_mib_per_rank=[metrics[-1]["peak_rss_mib"]],
        nelbo=Estimate(mean=result.mean, ci95=result.ci95),
        kl_to_teacher=None
        if role == "teacher"
        else kl_to_teacher(teacher, denoiser, states, batch_size=_BATCH_SIZE),
        curve=[
            CurvePoint(
                step=int(step["step"]),
                seconds=step["elapsed_s"],
                loss=step["loss"],
                ce=step["ce"],
                kd=step["kd"] if distilled else None,
            )
            for step in metrics[::stride]
        ],
    )


def _infills(
    denoisers: Mapping[Role, Denoiser], files: Corpus, plan: DemoPlan
) -> list[InfillExample]:
    tokenizer = denoisers["teacher"].tokenizer
    assert tokenizer is not None
    gaps = pick_functions(
        read_sources(files.held_out_path),
        tokenizer,
        num=plan.num_infills,
        max_tokens=plan.max_seq_len,
    )
    return [_infill(denoisers, gap, plan) for gap in gaps]


def _infill(denoisers: Mapping[Role, Denoiser], gap: FunctionGap, plan: DemoPlan) -> InfillExample:
    config = SamplerConfig(algorithm="entropy", num_steps=plan.infill_steps)
    filled = {
        role: infill(
            denoiser,
            gap.prefix,
            gap.middle,
            gap.suffix,
            sampler_config=config,
            seed=EVALUATION_SEED,
        )
        for role, denoiser in denoisers.items()
    }
    return InfillExample(
        path=gap.path,
        name=gap.name,
        prefix=gap.prefix,
        original=gap.middle,
        suffix=gap.suffix,
        num_masked=filled["teacher"].num_masked,
        answers=[
            InfillAnswer(
                role=role,
                middle=result.middle,
                token_accuracy=result.token_accuracy,
                parses=result.parses,
            )
            for role, result in filled.items()
        ],
    )
