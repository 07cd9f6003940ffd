"""The report in words and tables: what was measured, what follows from it, what does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from student_trainer.evaluation.intervals import PairedDifference
from student_trainer.report_model import ROLE_LABELS, DemoReport, ModelResult

ABSENT = "-"
GAIN_SHRINKS = (
    "Part of the gain is a faster start: it shrinks with longer training and with a teacher that "
    "is not trained to a plateau."
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, ready for the terminal and the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_prose: bool = False
    """Cells are words rather than numbers, so they stand on the left."""


def verdict(report: DemoReport) -> str:
    """Says whether distillation helped, from the intervals alone, with both controls."""
    steps = _verdict_part("the control with equal steps", report.comparison("control_same_steps"))
    time = _verdict_part("the control with equal wall time", report.comparison("control_same_time"))
    teacher = report.comparison("teacher")
    text = (
        f"The student {steps}. It {time}. "
        f"It is {teacher.mean:+.4f} ± {teacher.ci95:.4f} nats per token from the teacher, which "
        f"has {_size_ratio(report):.1f} times its parameters."
    )
    if report.quick:
        text += " This was a quick run of tiny sizes: it shows that everything runs, nothing else."
    return text


def outcome(difference: PairedDifference) -> str:
    """Returns "better", "equal" (the interval holds zero) or "worse"."""
    if not difference.is_significant:
        return "equal"
    return "better" if difference.mean < 0 else "worse"


def tables(report: DemoReport) -> list[Table]:
    """Returns every table of the report, in reading order."""
    return [
        _models(report),
        _comparisons(report),
        _kl_by_time(report),
        _server(report),
        _environment(report),
    ]


def caveats(report: DemoReport) -> list[str]:
    """Returns what a reader has to know before quoting a number."""
    environment = report.environment
    return [
        f"One training run of each model (data seed {environment.data_seed}, model seed "
        f"{environment.model_seed}). The intervals cover the choice of held-out sequences and "
        "masks, not another run; windows of one file are treated as independent.",
        "A distillation step costs more than a plain one. Equal steps says what a training "
        "token is worth; equal time says what a second is worth on this machine. " + GAIN_SHRINKS,
        "NELBO is an upper bound on the negative log-likelihood, exact over the vocabulary, with "
        "the share of masked tokens uniform and stratified; all models see the same sequences "
        "and masks, so differences are paired.",
        "In-filling is told the length of the original (an oracle length) and shows single "
        "samples, not a benchmark.",
        "Models this small, trained for minutes, write code that looks like code; the numbers "
        "compare training methods, not products.",
    ]


def _verdict_part(other: str, difference: PairedDifference) -> str:
    amount = (
        f"{abs(difference.mean):.4f} ± {difference.ci95:.4f} nats per token "
        f"({difference.relative:+.2%})"
    )
    return {
        "better": f"beats {other}: its held-out NELBO is lower by {amount}",
        "worse": f"is worse than {other}: its held-out NELBO is higher by {amount}",
        "equal": (
            f"cannot be told from {other}: its held-out NELBO differs by {difference.mean:+.4f} "
            f"± {difference.ci95:.4f} nats per token ({difference.relative:+.2%}), "
            "an interval that holds zero"
        ),
    }[outcome(difference)]


def _size_ratio(report: DemoReport) -> float:
    return report.model("teacher").num_parameters / report.model("student").num_parameters


def _models(report: DemoReport) -> Table:
    lines: list[tuple[str, Callable[[ModelResult], str]]] = [
        ("parameters", lambda model: f"{model.num_parameters:,}"),
        ("layers x width", lambda model: f"{model.num_layers} x {model.hidden_size}"),
        ("optimizer steps", lambda model: f"{model.num_steps:,}"),
        ("training time, s", lambda model: f"{model.train_s:.1f}"),
        ("training tokens/s", lambda model: f"{model.tokens_per_s:,.0f}"),
        ("waiting for the teacher", _teacher_wait),
        ("peak memory a rank, MiB", _peak_memory),
        ("held-out NELBO, nats/token", lambda m: f"{m.nelbo.mean:.4f} ± {m.nelbo.ci95:.4f}"),
        ("KL to the teacher, nats", _kl),
        ("top-1 agreement with it", _top1),
    ]
    return Table(
        title="Models",
        header=["", *(model.label for model in report.models)],
        rows=[[name, *(cell(model) for model in report.models)] for name, cell in lines],
        note="Lower NELBO is better; ± is a 95 % interval over held-out sequences. To compare "
        "models use the paired differences, whose intervals are much narrower.",
    )


def _teacher_wait(model: ModelResult) -> str:
    return f"{model.teacher_wait_fraction:.1%}" if model.role == "student" else ABSENT


def _peak_memory(model: ModelResult) -> str:
    return " / ".join(f"{mib:,.0f}" for mib in model.peak_memory_mib_per_rank)


def _kl(model: ModelResult) -> str:
    return f"{model.kl_to_teacher.overall.kl_nats:.4f}" if model.kl_to_teacher else ABSENT


def _top1(model: ModelResult) -> str:
    return f"{model.kl_to_teacher.overall.top1_agreement:.1%}" if model.kl_to_teacher else ABSENT


def _comparisons(report: DemoReport) -> Table:
    found = [(role, report.comparison(role)) for role in ROLE_LABELS if role != "student"]
    return Table(
        title="Student minus ...",
        header=["", "NELBO difference, nats/token", "relative", "the student is"],
        rows=[
            [ROLE_LABELS[role], f"{d.mean:+.4f} ± {d.ci95:.4f}", f"{d.relative:+.2%}", outcome(d)]
            for role, d in found
        ],
        note=f"Paired over {report.environment.num_held_out_sequences:,} held-out sequences with "
        f"{report.environment.masks_per_sequence} masks each; negative is better.",
    )


def _kl_by_time(report: DemoReport) -> Table:
    models = [model for model in report.models if model.kl_to_teacher is not None]
    rows: dict[tuple[float, float], list[str]] = {}
    for model in models:
        assert model.kl_to_teacher is not None
        for found in model.kl_to_teacher.bins:
            cell = f"{found.kl_nats:.4f} ({found.top1_agreement:.1%})"
            rows.setdefault((found.t_low, found.t_high), []).append(cell)
    return Table(
        title="KL to the teacher by share of masked tokens (top-1 agreement)",
        header=["masked", *(model.label for model in models)],
        rows=[[f"{low:.1%} to {high:.1%}", *cells] for (low, high), cells in rows.items()],
    )


def _server(report: DemoReport) -> Table:
    server = report.server
    rows = [
        ["peak memory, MiB", f"{server.peak_memory_mib:,.0f}"],
        ["batch fill", f"{server.batch_fill_fraction:.1%}"],
        ["tokens/s", f"{server.tokens_per_s:,.0f}"],
    ]
    for cost in server.encodings:
        used = " (used)" if cost.used else ""
        name = f"bytes per position, {cost.encoding}{used}"
        rows.append([name, f"{cost.bytes_per_position:,.1f}"])
    return Table(title="Teacher server", header=["", "measured"], rows=rows)


def _environment(report: DemoReport) -> Table:
    facts, distillation = report.environment, report.distillation
    rows = [
        ["distillation", f"alpha {distillation.alpha:g}, temperature {distillation.temperature:g}, "
         f"{distillation.divergence}, weighting {distillation.weighting}"],
        ["training text", f"{facts.num_train_files:,} files, {facts.num_train_bytes:,} bytes, "
         f"{facts.num_train_tokens:,} tokens"],
        ["held-out text", f"{facts.num_held_out_files:,} files, "
         f"{facts.num_held_out_bytes:,} bytes"],
        ["vocabulary", f"{facts.vocab_size:,}"],
        ["sequence length", f"{facts.max_seq_len:,} tokens"],
        ["seeds", f"data {facts.data_seed}, model {facts.model_seed}, "
         f"evaluation {facts.evaluation_seed}"],
        ["machine", f"{facts.platform}, {facts.num_cores} cores, {facts.num_ranks} ranks"],
        ["software", f"Python {facts.python_version}, torch {facts.torch_version}"],
        ["made", f"{report.created}, in {report.total_s:.0f} s"],
    ]  # fmt: skip
    return Table(title="Set-up", header=["", ""], rows=rows, is_prose=True)
