"""Distils a student in a plain PyTorch loop.

teacher-server --model TEACHER --listen 127.0.0.1:50051 &
python examples/bare_loop.py --student FOLDER --data TEXTS --teacher_address 127.0.0.1:50051
"""

import argparse
import functools
import itertools
import json
import sys

import torch
from torch.utils.data import DataLoader

from masked_diffusion.checkpoints import load_denoiser, save_denoiser
from student_trainer import (
    BatchPlan,
    DistillationObjective,
    LossConfig,
    Prefetcher,
    RemoteTeacher,
    RunSamples,
    StateBatch,
    StateCollator,
    TargetStore,
    TeacherError,
    common_info,
    load_dataset,
    with_targets,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    # float32 whatever was saved: in bfloat16, small updates of a weight are lost. For a new student
    # instead: build_student(StudentSpec(config_path=..., teacher_model_path=...), ...).
    student = load_denoiser(options.student, device=DEVICE, dtype=torch.float32).train()
    if student.tokenizer is None:
        raise ValueError(f"{options.student} has no tokenizer to read {options.data} with")
    with source(options) as teacher:
        # Refuses a teacher of another tokenizer, vocabulary, mask id or kind of noise.
        info = common_info(student.info, teacher.description)
        data = load_dataset(
            options.data,
            text_keys=("text",),
            tokenizer=student.tokenizer,
            max_seq_len=options.max_seq_len,
            min_chunk_tokens=options.min_chunk_tokens,
        )
        size, num_micro = options.batch_size, options.gradient_accumulation_steps
        if size % num_micro:
            raise ValueError(
                f"--batch_size must be a multiple of --gradient_accumulation_steps={num_micro}, "
                f"got {size}"
            )
        plan = BatchPlan(dataset_size=len(data), global_batch_size=size, seed=options.seed)
        loader = DataLoader(
            RunSamples(data, plan, num_steps=options.max_steps),
            batch_size=size // num_micro,
            collate_fn=StateCollator(info, global_batch_size=size, seed=options.seed),
        )
        objective = DistillationObjective(student, LossConfig(alpha=options.alpha))
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        # The teacher works on the next batches while the student trains on this one.
        ask = functools.partial(with_targets, teacher=teacher)
        with Prefetcher(loader, ask, window=4, on_close=teacher.close) as arriving:
            states = iter(arriving)
            for step in range(1, options.max_steps + 1):
                batches = list(itertools.islice(states, num_micro))
                sums = backward(objective, batches)
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                print(json.dumps({"step": step, **sums}), flush=True)
    save_denoiser(student, options.output)


def source(options: argparse.Namespace) -> TargetStore | RemoteTeacher:
    """Where targets come from: what `distill precompute --run_config` wrote, or a server."""
    if options.store:
        return TargetStore(options.store, device=DEVICE)
    address = options.teacher_address
    return RemoteTeacher.connect(address, timeout_s=options.timeout_s, device=DEVICE)


def backward(objective: DistillationObjective, batches: list[StateBatch]) -> dict[str, float]:
    """Gradients of (1 - alpha) * CE + alpha * KD over the micro-batches of one step."""
    normalizer = sum(objective.normalizer_share(batch) for batch in batches)
    sums = {"loss": 0.0, "ce": 0.0, "kd": 0.0}
    for batch in batches:
        result = objective(batch, normalizer)
        result.total.backward()
        sums["loss"] += float(result.total.detach())
        sums["ce"] += result.ce
        sums["kd"] += result.kd
    return sums


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--student", required=True, help="checkpoint folder or hub id")
    parser.add_argument("--data", required=True, help="files or folders of text")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--teacher_address", help="HOST:PORT, several with commas")
    choice.add_argument("--store", help="folder or URL of stored targets of the same states")
    parser.add_argument("--output", default="outputs/bare_loop", help="where the student goes")
    parser.add_argument("--alpha", type=float, default=0.5, help="the teacher's share of the loss")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=16, help="sequences of one step")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_seq_len", type=int, default=512)
    parser.add_argument("--min_chunk_tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout_s", type=float, default=120.0, help="patience with the teacher")
    try:
        train(parser.parse_args())
    except (ValueError, OSError, TeacherError) as error:
        print(f"bare_loop: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
