"""Peak memory of three trainings: without a teacher, with a remote one, with one in the process.

`python -m tests.bench.memory JSON`, with a workload and a number of steps, makes everything ready,
waits for a line on its standard input, and writes JSON to its standard output.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from masked_diffusion import checkpoints
from student_trainer.teacher_process import TeacherProcess
from tests.bench import models
from tests.bench.processes import Child
from tests.bench.workload import Workload

TEACHER_RATIO = 8
"""Parameters of the teacher over the student's, at least."""
_TIMEOUT_S = 600.0
# Nobody listens there: the run that holds its own teacher must not ask another.
_NO_ADDRESS = "127.0.0.1:9"


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Peak resident memory of each trainer, and what they share."""

    student_only_bytes: int
    remote_bytes: int
    in_process_bytes: int
    imports_bytes: int
    """Of a trainer that has imported everything and done nothing."""
    num_student_parameters: int
    num_teacher_parameters: int


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What the trainers read, and their command lines."""

    folder: Path
    workload: Workload
    num_steps: int
    num_student_parameters: int
    num_teacher_parameters: int

    @property
    def teacher_path(self) -> Path:
        return self.folder / "teacher"

    def start(self, name: str, *, is_remote: bool = False, holds_teacher: bool = False) -> Child:
        """A trainer; without a teacher it trains on the data alone."""
        settings = {
            "model.config_path": self.folder / "student",
            "data.train_path": self.folder / "text.txt",
            "data.max_seq_len": self.workload.seq_len,
            "train.output_dir": self.folder / name,
            "train.micro_batch_size": self.workload.micro_batch_size,
            "train.max_steps": self.num_steps,
            "train.save_hf_weights": "false",
            "distill.distillation_alpha": 0.5 if is_remote or holds_teacher else 0.0,
        }
        if holds_teacher:
            settings["distill.teacher_address"] = _NO_ADDRESS
        argument = {
            "arguments": [f"--{key}={value}" for key, value in settings.items()],
            "teacher": str(self.teacher_path) if holds_teacher else None,
            "is_remote": is_remote,
        }
        return Child("tests.bench.peak_memory", argument)


def measure(runs: Runs) -> Peaks:
    """Runs the three side by side, beside the server."""
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(runs.start("student_only"))
        remote = stack.enter_context(runs.start("remote", is_remote=True))
        holding = stack.enter_context(runs.start("in_process", holds_teacher=True))
        server = stack.enter_context(
            TeacherProcess(
                str(runs.teacher_path),
                log_path=runs.folder / "teacher_server.log",
                extra_arguments=["--num-threads=1"],
            )
        )
        remote.tell(server.address)
        answers = [child.answer(timeout_s=_TIMEOUT_S) for child in (alone, remote, holding)]
    peaks = [int(answer["peak_rss_bytes"]) for answer in answers]
    return Peaks(
        student_only_bytes=peaks[0],
        remote_bytes=peaks[1],
        in_process_bytes=peaks[2],
        imports_bytes=int(answers[0]["imports_bytes"]),
        num_student_parameters=runs.num_student_parameters,
        num_teacher_parameters=runs.num_teacher_parameters,
    )


@contextlib.contextmanager
def prepared(workload: Workload, *, num_steps: int) -> Iterator[Runs]:
    """Writes a tokenizer, a text, the student's configuration and the teacher."""
    transformers_logging.disable_progress_bar()
    tokenizer = _word_tokenizer(workload.vocab_size)
    student = checkpoints.new_denoiser(models.student_config(workload), tokenizer, seed=0)
    num_parameters = TEACHER_RATIO * student.info.num_parameters
    teacher_config = models.teacher_config(workload, num_parameters=num_parameters)
    teacher = checkpoints.new_denoiser(teacher_config, tokenizer, seed=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.student_config(workload).save_pretrained(folder / "student")
        tokenizer.save_pretrained(folder / "student")
        checkpoints.save_denoiser(teacher, folder / "teacher")
        num_words = workload.seq_len * workload.micro_batch_size * num_steps
        (folder / "text.txt").write_text(_random_text(workload.vocab_size, num_words=num_words))
        yield Runs(
            folder=folder,
            workload=workload,
            num_steps=num_steps,
            num_student_parameters=student.info.num_parameters,
            num_teacher_parameters=teacher.info.num_parameters,
        )


def _word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Words w3, w4, ... up to the vocabulary's size, behind three special tokens."""
    special = ["<eos>", "<bos>", "<M>"]
    words = [*special, *(f"w{index}" for index in range(len(special), vocab_size))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<eos>",
        bos_token="<bos>",
        mask_token="<M>",
    )


def _random_text(vocab_size: int, *, num_words: int) -> str:
    indices = np.random.default_rng(0).integers(3, vocab_size, size=num_words)
    return " ".join(f"w{index}" for index in indices)


def main() -> None:
    """Measures as the argument says."""
    fields = json.loads(sys.argv[1])
    with prepared(Workload(**fields["workload"]), num_steps=fields["num_steps"]) as runs:
        if not sys.stdin.readline():
            sys.exit("nobody waits for the answer any more")
        peaks = measure(runs)
    json.dump(dataclasses.asdict(peaks), sys.stdout)


if __name__ == "__main__":
    main()
