"""Writes an evaluation's report: JSON, tables, plots and one page that opens without a network."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from student_trainer.evaluation.evaluation import Drawing, Section
from student_trainer.evaluation.report_model import SCHEMA_VERSION, EvaluationReport
from student_trainer.evaluation.subjects import TEACHER
from student_trainer.plots import DPI
from student_trainer.report import print_table, template
from student_trainer.report_text import ABSENT, Table

TEXT_WIDTH = 180
"""Columns of table.txt, for the widest table."""
TITLE = "Evaluation of masked-diffusion language models"


def write_report(report: EvaluationReport, folder: Path, *, console: Console) -> Path:
    """Writes evaluation.json, table.txt, the plots and index.html; prints the tables.

    Returns:
        The page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(as_json(report), indent=2, allow_nan=False)
    (folder / "evaluation.json").write_text(content + "\n", encoding="utf-8")
    for name, rows in _files(report).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(lines, encoding="utf-8")
    with (folder / "table.txt").open("w", encoding="utf-8") as file:
        print_tables(report, Console(file=file, width=TEXT_WIDTH))
    print_tables(report, console)
    images = {
        name: [(drawing, _draw(drawing, folder)) for drawing in section.drawings]
        for name, section in report.sections.items()
    }
    page = folder / "index.html"
    page.write_text(
        template("evaluation.html.j2").render(
            title=TITLE, report=report, overview=[models_table(report)], images=images
        ),
        encoding="utf-8",
    )
    return page


def as_json(report: EvaluationReport) -> dict[str, object]:
    """What evaluation.json holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created": report.created,
        "total_s": report.total_s,
        "config": report.config,
        "software": report.software,
        "models": [asdict(model) for model in report.models],
        "skipped": [asdict(one) for one in report.skipped],
        "evaluations": {name: section.values for name, section in report.sections.items()},
    }


def print_tables(report: EvaluationReport, console: Console) -> None:
    """Prints every table, and what was left out."""
    console.print(f"{TITLE}\n", markup=False, style="bold")
    for table in [models_table(report), *_tables(report.sections.values())]:
        print_table(table, console)
    for one in report.skipped:
        console.print(
            f"left out: {one.evaluation} of {one.model}: {one.reason}",
            markup=False,
            highlight=False,
        )


def models_table(report: EvaluationReport) -> Table:
    """Which weights."""
    return Table(
        title="Models",
        header=["model", "family", "parameters", "attention", "noise", "dtype", "revision"],
        rows=[
            [
                model.name + (" (teacher)" if model.is_teacher and model.name != TEACHER else ""),
                model.family,
                f"{model.num_parameters:,}",
                model.attention
                if model.block_length is None
                else f"{model.attention}, {model.block_length}",
                model.noise,
                model.quantization or model.dtype,
                model.revision[:12] or ABSENT,
            ]
            for model in report.models
        ],
    )


def _tables(sections: Iterable[Section]) -> list[Table]:
    return [table for section in sections for table in section.tables]


def _files(report: EvaluationReport) -> dict[str, Sequence[object]]:
    return {
        name: rows for section in report.sections.values() for name, rows in section.files.items()
    }


def _draw(drawing: Drawing, folder: Path) -> str:
    """Writes the PNG file, and returns it in base64."""
    path = folder / f"{drawing.name}.png"
    FigureCanvasAgg(drawing.figure)
    drawing.figure.savefig(path, dpi=DPI, facecolor="white")
    return base64.b64encode(path.read_bytes()).decode("ascii")
