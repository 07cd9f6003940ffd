"""The report, rendered from made-up numbers: every number must be found again."""

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from student_trainer.evaluation.agreement import KlBin, KlToTeacher
from student_trainer.evaluation.intervals import PairedDifference
from student_trainer.report import write_report
from student_trainer.report_model import (
    Comparison,
    CurvePoint,
    DemoReport,
    DistillationFacts,
    EncodingCost,
    EnvironmentFacts,
    Estimate,
    InfillAnswer,
    InfillExample,
    ModelResult,
    Role,
    ServerFacts,
)
from student_trainer.report_text import outcome, tables, verdict

ROLES: list[Role] = ["teacher", "student", "control_same_steps", "control_same_time"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def kl_to_teacher(base):
    bins = [
        KlBin(
            t_low=index / 8,
            t_high=(index + 1) / 8,
            kl_nats=base + 0.0123 * index,
            top1_agreement=0.9 - 0.05 * index,
            num_positions=1000 * (index + 1),
            num_sequences=48,
            kl_ci95=0.01,
            top1_ci95=0.02,
        )
        for index in range(8)
    ]
    overall = KlBin(
        t_low=0,
        t_high=1,
        kl_nats=base + 0.0517,
        top1_agreement=0.7125,
        num_positions=36_000,
        num_sequences=384,
        kl_ci95=0.005,
        top1_ci95=0.01,
    )
    return KlToTeacher(bins=bins, overall=overall)


def model(index):
    role = ROLES[index]
    num_steps = 400 + 100 * (index == 3)
    points = range(0, num_steps, 5)
    return ModelResult(
        role=role,
        num_parameters=1_234_567 if role == "teacher" else 234_567,
        num_layers=4 if role == "teacher" else 2,
        hidden_size=192 if role == "teacher" else 96,
        num_steps=num_steps,
        train_s=61.5 + 13.25 * index,
        tokens_per_s=23_456 + index,
        teacher_wait_s=9.75 if role == "student" else 0.0,
        peak_memory_mib_per_rank=[512 + index, 498 + index],
        nelbo=Estimate(mean=3.4321 + 0.1111 * index, ci95=0.0456 + 0.001 * index),
        kl_to_teacher=None if role == "teacher" else kl_to_teacher(0.1 + 0.1 * index),
        curve=[
            CurvePoint(
                step=step,
                seconds=step * 0.21,
                loss=8 / (1 + step / 80) + 3 + 0.3 * ((step * 7919) % 13) / 13,
                ce=7 / (1 + step / 80) + 3 + 0.3 * ((step * 7919) % 13) / 13,
            )
            for step in points
        ],
    )


def difference(mean, ci95=0.0101):
    return PairedDifference(mean=mean, ci95=ci95, relative=mean / 3.6)


def demo_report(*, versus_steps=-0.1234, versus_time=0.0043, quick=False):
    return DemoReport(
        quick=quick,
        created="2026-01-02T03:04:05Z",
        total_s=612,
        models=[model(index) for index in range(4)],
        comparisons=[
            Comparison(other="teacher", difference=difference(0.2345)),
            Comparison(other="control_same_steps", difference=difference(versus_steps)),
            Comparison(other="control_same_time", difference=difference(versus_time)),
        ],
        server=ServerFacts(
            peak_memory_mib=743.2,
            batch_fill_fraction=0.8321,
            tokens_per_s=45_678,
            encodings=[
                EncodingCost(encoding="hidden", bytes_per_position=769.4, used=True),
                EncodingCost(encoding="top_k", bytes_per_position=257.3, used=False),
            ],
        ),
        distillation=DistillationFacts(
            alpha=0.75, temperature=1.5, divergence="forward_kl", weighting="inv_t"
        ),
        environment=EnvironmentFacts(
            python_version="3.11.7",
            torch_version="2.13.0+cpu",
            platform="Linux x86_64",
            num_cores=2,
            num_ranks=2,
            num_train_files=654,
            num_held_out_files=57,
            num_train_bytes=9_876_543,
            num_held_out_bytes=876_543,
            num_train_tokens=3_210_987,
            vocab_size=2048,
            max_seq_len=128,
            data_seed=17,
            model_seed=23,
            evaluation_seed=31,
            num_held_out_sequences=1024,
            masks_per_sequence=2,
        ),
        infills=[
            InfillExample(
                path="json/decoder.py",
                name="scan_once",
                prefix="def scan_once(string, idx):",
                original="\n    if a < b & c:\n        return '<b>'",
                suffix="\n    return idx",
                num_masked=19,
                answers=[
                    InfillAnswer(
                        role=role,
                        middle=f"\n    x = '{role}' <script>\n    y = 1",
                        token_accuracy=0.31,
                        parses=role != "student",
                    )
                    for role in ROLES[:3]
                ],
            )
        ],
    )


class Page(HTMLParser):
    """Collects the text, the images and whatever would be loaded from elsewhere."""

    def __init__(self, content):
        super().__init__()
        self.text, self.images, self.external, self.open_tags = "", [], [], []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img", "link"}:
            self.open_tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href"}:
                (self.images if value.startswith("data:") else self.external).append(value)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_every_number_is_on_the_page_in_the_text_and_on_the_terminal(tmp_path):
    report = demo_report()
    terminal = StringIO()

    page_path = write_report(report, tmp_path, console=Console(file=terminal, width=118))

    page = Page(page_path.read_text(encoding="utf-8"))
    table_text = (tmp_path / "table.txt").read_text(encoding="utf-8")
    cells = [cell for table in tables(report) for row in table.rows for cell in row]
    numbers = ["1,234,567", "3.4321 ± 0.0456", "23,457", "0.2517", "71.2%", "13.0%", "513 / 499"]
    numbers += ["-0.1234 ± 0.0101", "-3.43%", "+0.0043 ± 0.0101", "769.4", "257.3", "83.2%", "743"]
    numbers += ["45,678", "9,876,543", "3,210,987", "2,048", "1,024", "data 17", "model 23"]
    assert [number for number in numbers if number not in page.text] == []
    for cell in cells:
        assert cell in page.text
        assert set(cell.split()) <= set(re.split(r"[\s│┃]+", table_text)), cell
    assert terminal.getvalue() == table_text
    assert page.open_tags == []


def test_the_page_holds_its_images_and_needs_no_network(tmp_path):
    page = Page(write_report(demo_report(), tmp_path).read_text(encoding="utf-8"))
    assert page.external == []
    assert len(page.images) == 4
    for image in page.images:
        assert base64.b64decode(image.partition(",")[2]).startswith(PNG_SIGNATURE)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["curves.png", "kl.png", "nelbo.png", "time.png"]


def test_code_is_shown_as_it_is_and_never_run(tmp_path):
    content = write_report(demo_report(), tmp_path).read_text(encoding="utf-8")
    assert "<script" not in content
    shown = Page(content).text
    assert "x = 'student' <script>" in shown
    assert "if a < b & c:\n        return '<b>'" in shown


def test_the_json_is_the_report(tmp_path):
    report = demo_report()
    write_report(report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(dataclasses.asdict(report)))
    assert content["models"][1]["nelbo"] == {"mean": 3.4321 + 0.1111, "ci95": 0.0466}


@pytest.mark.parametrize(
    ("mean", "word", "phrase"),
    [
        (-0.05, "better", "The student beats the control with equal steps"),
        (0.05, "worse", "The student is worse than the control with equal steps"),
        (-0.01, "equal", "The student cannot be told from the control with equal steps"),
        (0.01, "equal", "The student cannot be told from the control with equal steps"),
    ],
)
def test_the_verdict_follows_from_the_interval(mean, word, phrase):
    report = demo_report(versus_steps=mean)
    assert outcome(report.comparison("control_same_steps")) == word
    assert phrase in verdict(report)


def test_the_verdict_always_names_the_control_with_equal_time():
    text = verdict(demo_report(versus_steps=-0.5, versus_time=0.2))
    assert "is worse than the control with equal wall time" in text
    assert "0.2000 ± 0.0101" in text


def test_a_quick_run_says_that_it_proves_nothing():
    assert "quick run" in verdict(demo_report(quick=True))
    assert "quick run" not in verdict(demo_report())


def test_a_report_lacks_no_control():
    report = demo_report()
    with pytest.raises(ValueError, match="models must be one of each"):
        dataclasses.replace(report, models=report.models[:3])
    with pytest.raises(ValueError, match="comparisons must be with teacher and controls"):
        dataclasses.replace(report, comparisons=report.comparisons[:2])


def test_a_curve_without_cross_entropy_says_that_it_is_the_whole_loss(tmp_path):
    report = demo_report()
    student = report.models[1]
    curve = [dataclasses.replace(point, ce=None) for point in student.curve]
    models = [*report.models]
    models[1] = dataclasses.replace(student, curve=curve)
    write_report(dataclasses.replace(report, models=models), tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG_SIGNATURE)
