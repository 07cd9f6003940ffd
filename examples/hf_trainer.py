"""Distils a student with transformers.Trainer, on one device or with DDP under torchrun.

teacher-server --model TEACHER --listen 127.0.0.1:50051 &
python examples/hf_trainer.py --student FOLDER --data TEXTS --teacher_address 127.0.0.1:50051 \
    --output_dir outputs/hf_trainer --max_steps 100 --gradient_accumulation_steps 2
"""

import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import HfArgumentParser, Trainer, TrainingArguments

from masked_diffusion.checkpoints import load_denoiser
from student_trainer import (
    BatchPlan,
    DistillationObjective,
    LossConfig,
    Objective,
    RemoteTeacher,
    RunSamples,
    Sample,
    StateBatch,
    StateCollator,
    TargetSource,
    TargetStore,
    TeacherError,
    common_info,
    load_dataset,
    with_targets,
)


@dataclass(kw_only=True)
class Options:
    """What is distilled; all else is in TrainingArguments."""

    student: str
    data: str
    teacher_address: str = ""
    store: str = ""
    eval_data: str | None = None
    alpha: float = 0.5
    max_seq_len: int = 512
    min_chunk_tokens: int = 16
    timeout_s: float = 120.0


class Collator(StateCollator):
    """Runs in the loader's workers; makes states, and leaves asking the teacher to the trainer."""

    def __call__(self, samples: Sequence[Sample]) -> Any:
        return {"states": super().__call__(samples)}  # Trainer takes nothing but a dict


class DistillationTrainer(Trainer):
    """Asks the teacher for all micro-batches of a step at once, and normalises over the step."""

    objective: DistillationObjective
    teacher: TargetSource
    loss_is_scaled_for_ga = True  # or Trainer divides by the number of micro-batches once more

    def __init__(self, *, model: DistillationObjective, teacher: TargetSource, **kwargs: Any):
        # The objective is the model, not the student: what DDP wraps must hold the whole loss.
        super().__init__(model=model, **kwargs)
        self.objective, self.teacher = model, teacher
        self.threads = ThreadPoolExecutor(max_workers=4)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        batches = [inputs["states"] for inputs in itertools.islice(epoch_iterator, num_batches)]
        answers = [self.threads.submit(with_targets, states, self.teacher) for states in batches]
        # Trainer would count labels other than -100, of which a LossConfig may want another count.
        share = sum(self.objective.normalizer_share(states) for states in batches)
        total = self.accelerator.reduce(torch.tensor(float(share), device=device), "sum")
        return [{"answer": answer} for answer in answers], total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        result: Objective = model(inputs["answer"].result(), float(num_items_in_batch))
        # DDP averages over ranks what we want the sum of: the normaliser is of all ranks already.
        loss = result.total * self.accelerator.num_processes
        return (loss, result) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        # Trainer's own looks for `label_names` in the inputs, and calls model(**inputs) without.
        # It reports the mean over batches, each with its own normaliser.
        states: StateBatch = with_targets(inputs["states"], self.teacher)
        with torch.no_grad():
            result: Objective = model(states, self.objective.normalizer_share(states))
        return result.total, None, None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # The student as a Hugging Face folder; Trainer's own would write the objective's tensors.
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            self.objective.denoiser.model.save_pretrained(folder, save_original_format=False)
            self.objective.denoiser.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]

    def _load_from_checkpoint(self, folder: str, model: nn.Module | None = None) -> None:
        # Trainer's own finds no name it knows in there, and goes on without the weights.
        self.objective.denoiser.load_state_dict(load_denoiser(folder).state_dict())


def source(options: Options, device: torch.device) -> TargetStore | RemoteTeacher:
    """Where targets come from: what `distill precompute --run_config` wrote, or a server."""
    if options.store:
        return TargetStore(options.store, device=device)
    address = options.teacher_address
    return RemoteTeacher.connect(address, timeout_s=options.timeout_s, device=device)


def check_ranks(args: TrainingArguments) -> None:
    """Refuses what Trainer takes in silence: one process on many GPUs, many that do not meet."""
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs and one process; start one a GPU with torchrun")
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != num_ranks:
        raise ValueError(
            f"torchrun started {num_ranks} ranks, Trainer sees {args.world_size}; on CPUs give "
            "--use_cpu true"
        )


def train(options: Options, args: TrainingArguments) -> None:
    # float32 whatever was saved; --bf16 then computes in bfloat16, but for the loss and the head.
    student = load_denoiser(options.student, device=args.device, dtype=torch.float32).train()
    tokenizer = student.tokenizer
    if tokenizer is None:
        raise ValueError(f"{options.student} has no tokenizer to read {options.data} with")
    with source(options, args.device) as teacher:
        # Refuses a teacher of another tokenizer, vocabulary, mask id or kind of noise.
        info = common_info(student.info, teacher.description)
        global_batch_size = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )

        def samples(path: str, *, num_steps: int = 0, num_epochs: float = 1.0) -> RunSamples:
            data = load_dataset(
                path,
                text_keys=("text",),
                tokenizer=tokenizer,
                max_seq_len=options.max_seq_len,
                min_chunk_tokens=options.min_chunk_tokens,
            )
            plan = BatchPlan(
                dataset_size=len(data), global_batch_size=global_batch_size, seed=args.seed
            )
            epoch_steps = math.ceil(num_epochs * len(data) / global_batch_size)
            return RunSamples(data, plan, num_steps=num_steps if num_steps > 0 else epoch_steps)

        # All epochs are one run of samples: Trainer would go over one epoch's again and again,
        # with the very same noise.
        train_samples = samples(
            options.data, num_steps=args.max_steps, num_epochs=args.num_train_epochs
        )
        args.max_steps = len(train_samples) // global_batch_size

        trainer = DistillationTrainer(
            model=DistillationObjective(student, LossConfig(alpha=options.alpha)),
            teacher=teacher,
            args=args,
            data_collator=Collator(info, global_batch_size=global_batch_size, seed=args.seed),
            train_dataset=train_samples,
            # The same sequences and the same masks at every evaluation.
            eval_dataset=samples(options.eval_data) if options.eval_data else None,
        )
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()


def main() -> int:
    options, args = HfArgumentParser((Options, TrainingArguments)).parse_args_into_dataclasses()  # type: ignore[arg-type]
    args.remove_unused_columns = False  # samples are no dicts of the model's arguments
    args.train_sampling_strategy = "sequential"  # RunSamples is shuffled already
    args.ddp_find_unused_parameters = False  # every parameter of the objective is used
    if args.dataloader_num_workers:
        # A fork beside a gRPC channel inherits locks that its missing threads hold, and hangs.
        args.dataloader_multiprocessing_context = "spawn"
        args.dataloader_persistent_workers = True
    try:
        check_ranks(args)
        train(options, args)
    except (ValueError, OSError, TeacherError) as error:
        print(f"hf_trainer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
