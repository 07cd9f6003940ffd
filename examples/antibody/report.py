"""The report: Markdown, one picture, and the numbers as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.antibody.results import ModelResult, Result
from student_trainer.plots import COLOURS, MARKERS
from student_trainer.report_model import Role

ROLES: tuple[Role, ...] = ("teacher", "student", "control_same_steps")
"""In the order of Result.models, for colours that the demo's report has too."""
ABSENT = "-"
PICTURE = "antibody.png"


def write_report(result: Result, folder: Path) -> Path:
    """Writes report.md, the picture and report.json; returns the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(result), indent=2, allow_nan=False)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    figure = draw(result)
    FigureCanvasAgg(figure)
    figure.savefig(folder / PICTURE, dpi=150, facecolor="white")
    path = folder / "report.md"
    path.write_text(markdown(result), encoding="utf-8")
    return path


def markdown(result: Result) -> str:
    """The report's text."""
    teacher, student, _ = result.models
    difference = result.difference
    ratio = teacher.num_parameters / student.num_parameters
    word = "lower" if difference.mean < 0 else "higher"
    telling = "" if difference.is_significant else ", an interval that holds zero"
    accuracies = ", ".join(f"{value:.2f} at {share}" for share, value in result.accuracies.items())
    quick = (
        "**A quick run: it shows the path, its numbers mean nothing.**\n\n" if result.quick else ""
    )
    return f"""# AntiBERTy, distilled

{quick}Teacher: AntiBERTy, {teacher.num_parameters:,} parameters, served over gRPC. Masked-token
accuracy on two human germline sequences: {accuracies} of residues masked.

Student: a BERT {ratio:.1f} times smaller, trained for {result.train_steps} steps of
{result.sequences_per_step} sequences on the teacher's distributions alone; the control had the same
start, data, masks and steps, and true residues instead of the teacher.

The student's held-out NELBO is {abs(difference.mean):.4f} ± {difference.ci95:.4f} nats a residue
{word} than the control's ({difference.relative:+.1%}){telling}.

{_table(result)}

![Divergence, likelihood and samples]({PICTURE})

Data: {result.num_train_sequences} sequences to train on and {result.num_held_out_sequences} held
out, all sampled from the teacher in {result.generate_s:.0f} s. Dropped, for a special token inside:
{result.num_dropped_sequences}. NELBO is over residues of held-out sequences with a uniform
share of masks, ± its 95 % interval. The framework is two cysteines, a tryptophan and the joining
segment's motif at their usual distances; pseudo-perplexity is the teacher's, an eighth of the
residues hidden at a time. Server: {result.server_tokens_per_s:,.0f} tokens/s while busy, peak
memory {result.server_peak_mib:,.0f} MiB. Everything took {result.total_s:.0f} s.

What this does not say: that any sequence folds, binds or can be made. The data are the teacher's
own samples, so its NELBO on them is flattered; the intervals cover held-out sequences, not other
seeds of training.
"""


def _table(result: Result) -> str:
    rows: list[tuple[str, Callable[[ModelResult], str]]] = [
        ("parameters", lambda m: f"{m.num_parameters:,}"),
        ("held-out NELBO, nats/residue", lambda m: f"{m.nelbo:.4f} ± {m.nelbo_ci95:.4f}"),
        ("KL to the teacher, nats", lambda m: f"{m.kl.overall.kl_nats:.4f}" if m.kl else ABSENT),
        (
            "same most probable residue",
            lambda m: f"{m.kl.overall.top1_agreement:.1%}" if m.kl else ABSENT,
        ),
        ("samples: framework in place", lambda m: f"{m.samples.framework_fraction:.0%}"),
        ("samples: pseudo-perplexity", lambda m: f"{m.samples.pseudo_perplexity:.2f}"),
        ("samples: distinct", lambda m: f"{m.samples.distinct_fraction:.0%}"),
        ("training, s", lambda m: ABSENT if m.train_s is None else f"{m.train_s:.0f}"),
        (
            "of it waiting for the teacher",
            lambda m: ABSENT if not m.train_s else f"{(m.teacher_wait_s or 0) / m.train_s:.0%}",
        ),
        (
            "training tokens/s",
            lambda m: ABSENT if m.tokens_per_s is None else f"{m.tokens_per_s:,.0f}",
        ),
        ("a sample", lambda m: f"`{m.samples.example}`"),
    ]
    lines = [
        "| | " + " | ".join(model.name for model in result.models) + " |",
        "|---|" + "---|" * len(result.models),
    ]
    lines += [f"| {name} | {' | '.join(map(cell, result.models))} |" for name, cell in rows]
    return "\n".join(lines)


def draw(result: Result) -> Figure:
    """Divergence by share of masks, held-out likelihood, and samples, side by side."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for role, model in zip(ROLES, result.models, strict=True):
        if model.kl is not None:
            shares = [50 * (found.t_low + found.t_high) for found in model.kl.bins]
            values = [found.kl_nats for found in model.kl.bins]
            left.plot(shares, values, color=COLOURS[role], marker=MARKERS[role], label=model.name)
    left.set_xlabel("masked residues (%)")
    left.set_ylabel("KL(teacher, model) (nats)")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    names = [model.name for model in result.models]
    colours = [COLOURS[role] for role in ROLES]
    middle.bar(
        names,
        [model.nelbo for model in result.models],
        yerr=[model.nelbo_ci95 for model in result.models],
        color=colours,
        capsize=4,
    )
    middle.set_ylabel("held-out NELBO (nats/residue)")
    right.bar(names, [100 * model.samples.framework_fraction for model in result.models],
              color=colours)  # fmt: skip
    for place, model in enumerate(result.models):
        right.annotate(
            f"ppl {model.samples.pseudo_perplexity:.1f}",
            (place, 100 * model.samples.framework_fraction),
            (0, 3),
            textcoords="offset points",
            ha="center",
        )
    right.set_ylim(0, 112)
    right.set_ylabel("samples with the framework (%)")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure
