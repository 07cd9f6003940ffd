"""Writes the demo's report: JSON, tables, plots and one page that opens without a network."""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from rich.console import Console
from rich.table import Table as RichTable

from student_trainer.plots import Plot, draw_plots
from student_trainer.report_model import ROLE_LABELS, DemoReport
from student_trainer.report_text import Table, caveats, outcome, tables, verdict

TEMPLATES = Path(__file__).parent / "templates"
TEXT_WIDTH = 118
TITLE = "Distilling a masked-diffusion language model over gRPC"


def write_report(report: DemoReport, folder: Path, *, console: Console | None = None) -> Path:
    """Writes report.json, table.txt, the plots and index.html; prints the tables to `console`.

    Returns:
        The page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(report), indent=2, allow_nan=False)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    with (folder / "table.txt").open("w", encoding="utf-8") as file:
        print_tables(report, Console(file=file, width=TEXT_WIDTH))
    if console is not None:
        print_tables(report, console)
    plots = draw_plots(report, folder)
    page = folder / "index.html"
    page.write_text(render_page(report, plots), encoding="utf-8")
    return page


def print_tables(report: DemoReport, console: Console) -> None:
    """Prints the verdict and every table."""
    console.print(f"{TITLE}\n", markup=False, style="bold")
    for table in tables(report):
        print_table(table, console)
    console.print(verdict(report), markup=False, highlight=False)


def print_table(table: Table, console: Console) -> None:
    """Prints one table, with its note."""
    console.print(_rich_table(table))
    if table.note:
        console.print(table.note, markup=False, style="dim")
    console.print()


def template(name: str) -> Template:
    """Reads a page's template; a name that it uses and nobody gives is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render_page(report: DemoReport, plots: Sequence[Plot]) -> str:
    """Renders the page with its images inside it."""
    images = [(plot, base64.b64encode(plot.path.read_bytes()).decode("ascii")) for plot in plots]
    return template("report.html.j2").render(
        title=TITLE,
        report=report,
        verdict=verdict(report),
        outcome=outcome(report.comparison("control_same_steps")),
        tables=tables(report),
        images=images,
        caveats=caveats(report),
        labels=ROLE_LABELS,
    )


def _rich_table(table: Table) -> RichTable:
    rich_table = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        show_header=any(table.header),
    )
    for index, name in enumerate(table.header):
        on_left = index == 0 or table.is_prose
        rich_table.add_column(name, justify="left" if on_left else "right", overflow="fold")
    for row in table.rows:
        rich_table.add_row(*row)
    return rich_table
