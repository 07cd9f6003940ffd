"""`distill demo`: the main job, end to end, on this machine, with a report.

Trains a teacher on the standard library's own sources, serves it from a process of its own, distils
a small student over gRPC with torchrun, trains two controls without the teacher, and compares them.
"""

import argparse
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from protos import errors
from student_trainer import corpus, demo_runs, report
from student_trainer import demo_measure as measure
from student_trainer.config import DistillConfig, TrainConfig
from student_trainer.data import TokenizedDataset, load_dataset
from student_trainer.demo_plan import FULL, QUICK, DemoPlan
from student_trainer.demo_runs import Run
from student_trainer.report_model import (
    DemoReport,
    DistillationFacts,
    EnvironmentFacts,
    Role,
    ServerFacts,
)
from student_trainer.teacher_process import TeacherProcess

EXIT_FAILED = 1
_NUM_STAGES = 7


class Demo:
    """The stages of one demo in one folder; each reuses what is valid of an earlier demo."""

    def __init__(self, folder: Path, plan: DemoPlan, console: Console, *, quick: bool) -> None:
        self._folder = folder
        self._plan = plan
        self._console = console
        self._quick = quick
        self._started_s = time.monotonic()
        self._stage = 0

    def run(self) -> Path:
        """Runs all stages; returns the report's page."""
        plan = self._plan
        self._say("corpus, tokenizer, tokenized data")
        files = corpus.build_corpus(self._folder / "corpus", max_bytes=plan.max_corpus_bytes)
        tokenizer = corpus.build_tokenizer(
            files, self._folder / "tokenizer", vocab_size=plan.vocab_size
        )
        for name, size in (("teacher", plan.teacher), ("student", plan.student)):
            demo_runs.write_model_config(self._config_path(name), size, plan, tokenizer)
        self._corpus = files
        # Once here, so that the ranks find it instead of each making it.
        train_data = self._dataset(
            files.train_path, tokenizer, min_chunk_tokens=plan.min_chunk_tokens
        )
        held_out = self._dataset(
            files.held_out_path, tokenizer, min_chunk_tokens=plan.max_seq_len // 2
        )
        self._console.print(
            f"      [dim]{files.num_train_files} files, {len(train_data.token_ids):,} tokens in "
            f"{len(train_data):,} sequences to train on; {files.num_held_out_files} files held out"
            "[/dim]"
        )

        self._say(f"teacher: {plan.teacher_steps} steps on the data")
        teacher_run = self._train("teacher", plan.teacher_steps, plan.teacher_lr)
        teacher = checkpoints.load_denoiser(str(teacher_run.model_path))
        revision = checkpoints.weights_digest(teacher)

        self._say(f"student: {plan.student_steps} steps against the teacher server")
        student_run, server = self._distil(teacher_run, revision, held_out)

        self._say(f"control: the same student, data and {plan.student_steps} steps, no teacher")
        same_steps_run = self._train("control_same_steps", plan.student_steps, plan.student_lr)

        num_steps = round(plan.student_steps * student_run.train_s / same_steps_run.train_s)
        self._say(f"control: the same wall time, no teacher ({num_steps} steps)")
        same_time_run = self._train("control_same_time", num_steps, plan.student_lr)

        self._say("evaluation on held-out files")
        runs: dict[Role, Run] = {
            "teacher": teacher_run,
            "student": student_run,
            "control_same_steps": same_steps_run,
            "control_same_time": same_time_run,
        }
        evaluation = measure.evaluate(runs, held_out, files, plan)

        self._say("report")
        result = DemoReport(
            quick=self._quick,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            total_s=time.monotonic() - self._started_s,
            models=evaluation.models,
            comparisons=evaluation.comparisons,
            server=server,
            distillation=_distillation_facts(plan),
            environment=self._environment(teacher, len(train_data.token_ids)),
            infills=evaluation.infills,
        )
        return report.write_report(result, self._folder / "report", console=self._console)

    def _say(self, what: str) -> None:
        self._stage += 1
        self._console.print(
            f"[bold]\\[{self._stage}/{_NUM_STAGES}][/bold] {what} "
            f"[dim]({time.monotonic() - self._started_s:.0f} s so far)[/dim]"
        )

    def _config_path(self, name: str) -> Path:
        return self._folder / f"{name}_config"

    def _train(
        self,
        name: str,
        num_steps: int,
        lr: float,
        *,
        teacher_address: str | None = None,
        depends_on: Sequence[str] = (),
    ) -> Run:
        plan = self._plan
        folder = self._folder / name
        settings = demo_runs.settings_for(
            plan,
            folder=folder,
            config_path=self._config_path("teacher" if name == "teacher" else "student"),
            train_path=self._corpus.train_path,
            num_steps=num_steps,
            lr=lr,
            teacher_address=teacher_address,
        )
        run = demo_runs.train(
            folder,
            settings,
            num_ranks=plan.num_ranks,
            depends_on=[self._corpus.digest, demo_runs.plan_digest(plan), *depends_on],
        )
        if run.reused:
            self._console.print(f"      [dim]reused {folder}[/dim]")
        return run

    def _distil(
        self, teacher_run: Run, revision: str, dataset: TokenizedDataset
    ) -> tuple[Run, ServerFacts]:
        folder = self._folder / "student"
        with TeacherProcess(
            str(teacher_run.model_path),
            log_path=self._folder / "teacher_server.log",
            extra_arguments=("--num-threads=1",),
        ) as server:
            self._console.print(
                f"      [dim]teacher-server pid {server.pid} on {server.address}, log in "
                f"{self._folder / 'teacher_server.log'}[/dim]"
            )
            run = self._train(
                "student",
                self._plan.student_steps,
                self._plan.student_lr,
                teacher_address=server.address,
                depends_on=[revision],
            )
            facts = measure.server_facts(server.address, dataset, run, folder / "server.json")
        return run, facts

    def _dataset(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, *, min_chunk_tokens: int
    ) -> TokenizedDataset:
        return load_dataset(
            str(path),
            text_keys=["text"],
            tokenizer=tokenizer,
            max_seq_len=self._plan.max_seq_len,
            min_chunk_tokens=min_chunk_tokens,
            cache_folder=self._folder / "data_cache",
        )

    def _environment(self, teacher: Denoiser, num_train_tokens: int) -> EnvironmentFacts:
        plan, files = self._plan, self._corpus
        return EnvironmentFacts(
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            platform=f"{platform.system()} {platform.machine()}",
            num_cores=os.cpu_count() or 1,
            num_ranks=plan.num_ranks,
            num_train_files=files.num_train_files,
            num_held_out_files=files.num_held_out_files,
            num_train_bytes=files.num_train_bytes,
            num_held_out_bytes=files.num_held_out_bytes,
            num_train_tokens=num_train_tokens,
            vocab_size=teacher.info.vocab_size,
            max_seq_len=plan.max_seq_len,
            data_seed=plan.seed,
            model_seed=plan.seed,
            evaluation_seed=measure.EVALUATION_SEED,
            num_held_out_sequences=plan.num_held_out_sequences,
            masks_per_sequence=plan.masks_per_sequence,
        )


def _distillation_facts(plan: DemoPlan) -> DistillationFacts:
    distill = DistillConfig(teacher_address="x:1", distillation_alpha=plan.distillation_alpha)
    train = TrainConfig(output_dir="x")
    return DistillationFacts(
        alpha=plan.distillation_alpha,
        temperature=distill.temperature,
        divergence=distill.divergence,
        weighting=train.loss_weighting,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="distill demo", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("demo_run"), help="folder of everything it makes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, the same path, no evidence"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level="WARNING")
    transformers_logging.disable_progress_bar()
    # Evaluation has the machine to itself; the training processes have a thread each.
    torch.set_num_threads(os.cpu_count() or 1)
    console = Console()
    folder = options.work_dir / ("quick" if options.quick else "full")
    try:
        page = Demo(folder, QUICK if options.quick else FULL, console, quick=options.quick).run()
    except (RuntimeError, ValueError, OSError, errors.TeacherError) as error:
        print(f"distill demo: {error}", file=sys.stderr)
        return EXIT_FAILED
    console.print(f"\nReport: [bold]{page}[/bold] (open it in a browser)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
