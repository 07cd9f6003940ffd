"""Benchmark tasks: what lm-eval knows, and programs that pass their tests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

from masked_diffusion.families import Denoiser
from student_trainer.evaluation import task_figure
from student_trainer.evaluation.evaluation import Drawing, Evaluation, Section
from student_trainer.evaluation.json_values import json_value
from student_trainer.evaluation.subjects import Setting, Subject
from student_trainer.report_text import ABSENT, Table
from student_trainer.tasks.code_tasks import CodeTaskResult
from student_trainer.tasks.run import PreparedTasks, TasksResult, prepare_tasks, run_tasks
from student_trainer.tasks.sandbox.isolation import ISOLATIONS
from student_trainer.tasks.scores import TaskScore

VERDICTS = ("passed", "failed", "timeout")


@dataclass(frozen=True, kw_only=True)
class _Measured:
    scores: tuple[TaskScore, ...]
    code_tasks: tuple[CodeTaskResult, ...]
    rows: list[Mapping[str, object]]
    """Every question with its answers."""
    versions: object
    """Of lm-eval's tasks."""


class TasksEvaluation(Evaluation):
    """Scores on tasks that others published."""

    title = "Benchmark tasks"
    needs = "tasks"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        config = setting.config
        self._lm_options = config.lm_options(seed=config.seed, batch_size=config.batch_size)
        self._prepared: PreparedTasks | None = None
        self._measured: dict[str, _Measured] = {}

    def refusal(self, subject: Subject) -> str | None:
        return None

    def prepare(self, subjects: Sequence[Subject]) -> None:
        config = self.setting.config
        self._prepared = prepare_tasks(config.tasks, config.tasks_options(seed=config.seed))
        scoring = self._prepared.harness.scoring if self._prepared.harness else []
        for subject in subjects:
            if scoring and subject.info.noise != "absorbing":
                raise ValueError(
                    f"task {scoring[0]} asks for likelihoods, and {subject.name} has "
                    f"{subject.info.noise} noise, of which there is none; leave the task or the "
                    "model out"
                )

    def measure(self, subject: Subject, denoiser: Denoiser, *, teacher: Denoiser | None) -> None:
        assert self._prepared is not None
        result = run_tasks(denoiser, self._prepared, lm_options=self._lm_options)
        self._measured[subject.name] = _Measured(
            scores=result.scores,
            code_tasks=result.code_tasks,
            rows=list(_rows(subject.name, result)),
            versions=json_value(result.harness.raw.get("versions") if result.harness else None),
        )

    def conclude(self) -> Section:
        scores = {name: found.scores for name, found in self._measured.items()}
        codes = [(name, one) for name, found in self._measured.items() for one in found.code_tasks]
        figure = task_figure.tasks(scores, names=self.setting.names)
        return Section(
            title=self.title,
            values={
                "generation": asdict(self._lm_options.generation),
                "likelihood": asdict(self._lm_options.likelihood),
                "lm_eval_version": _lm_eval_version(self._prepared),
                "models": [_values(name, found) for name, found in self._measured.items()],
            },
            tables=[_score_table(scores), *([_code_table(codes)] if codes else [])],
            drawings=[
                Drawing(
                    name="tasks",
                    title=self.title,
                    caption="Scores that are shares, the higher the better"
                    f"{task_figure.FIRST_ONLY if task_figure.is_cut(scores) else ''}. Bars are 95 "
                    "% intervals, from the standard errors.",
                    figure=figure,
                )
            ]
            if figure
            else [],
            reading=[*_reading(), *_isolation_reading(codes)],
            files={"tasks.jsonl": [row for found in self._measured.values() for row in found.rows]},
        )


def _reading() -> list[str]:
    return [
        "Standard errors are over a task's questions: they do not cover another training run, nor "
        "the draws of a sampler with a temperature. All models answer the same questions, so a "
        "difference is surer than two of these errors make it look.",
        "Scores by likelihood compare bounds on it, as the number of masks draws them; they "
        "compare with others of the same settings only, and say nothing of a sampler.",
    ]


def _isolation_reading(codes: Sequence[tuple[str, CodeTaskResult]]) -> list[str]:
    isolations = dict.fromkeys(code.isolation for _, code in codes)
    return [f"Programs ran in {one}: {ISOLATIONS[one]}." for one in isolations]


def _lm_eval_version(prepared: PreparedTasks | None) -> str | None:
    return metadata.version("lm-eval") if prepared and prepared.harness else None


def _values(name: str, found: _Measured) -> dict[str, object]:
    return {
        "model": name,
        "scores": [json_value(score) for score in found.scores],
        "task_versions": found.versions,
        "code_tasks": [
            {
                "task": code.task,
                "isolation": code.isolation,
                "verdicts": {verdict: code.verdicts.get(verdict, 0) for verdict in VERDICTS},
                "distinct_fraction": code.distinct_fraction,
            }
            for code in found.code_tasks
        ],
    }


def _rows(name: str, result: TasksResult) -> Iterator[Mapping[str, object]]:
    for task, samples in (result.harness.raw.get("samples", {}) if result.harness else {}).items():
        for sample in samples:
            row = json_value(sample)
            assert isinstance(row, dict)
            yield {"model": name, "task": task, **row}
    for code in result.code_tasks:
        for problem in code.problems:
            answers = [{"answer": one.answer, **asdict(one.outcome)} for one in problem.attempts]
            yield {
                "model": name,
                "task": code.task,
                "task_id": problem.task_id,
                "answers": answers,
            }


def _score_table(scores: Mapping[str, Sequence[TaskScore]]) -> Table:
    found = [(name, score) for name, row in scores.items() for score in row]
    # Models stand side by side under each task.
    keys = list(dict.fromkeys((score.task, score.metric) for _, score in found))
    found.sort(key=lambda pair: keys.index((pair[1].task, pair[1].metric)))
    return Table(
        title="Benchmark tasks",
        header=["task", "metric", "model", "score", "standard error", "questions"],
        rows=[
            [
                score.task,
                score.metric,
                name,
                f"{score.value:.4f}",
                ABSENT if score.stderr is None else f"{score.stderr:.4f}",
                ABSENT if score.num_questions is None else f"{score.num_questions:,}",
            ]
            for name, score in found
        ],
    )


def _code_table(codes: Sequence[tuple[str, CodeTaskResult]]) -> Table:
    return Table(
        title="Programs",
        header=["task", "model", "isolation", *VERDICTS, "distinct answers"],
        rows=[
            [
                code.task,
                name,
                code.isolation,
                *(f"{code.verdicts.get(verdict, 0):,}" for verdict in VERDICTS),
                f"{code.distinct_fraction:.0%}",
            ]
            for name, code in codes
        ],
        note="Distinct answers to a problem, by its answers; where they are few, pass@k is pass@1.",
    )
