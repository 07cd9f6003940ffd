"""`torchrun -m student_trainer.train CONFIG.yaml --section.field=value`: one training run.

Exit codes: 0 done, 1 failed, 2 misused.
"""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from masked_diffusion.families import Denoiser
from protos import errors
from student_trainer import config_file
from student_trainer.config import Config
from student_trainer.interrupt import StopRequest
from student_trainer.metrics import MetricsLog
from student_trainer.packing import check_packing
from student_trainer.parallel import Parallel, start_parallel
from student_trainer.prefetch import Prefetcher
from student_trainer.readers import build_reader, count_steps, open_run_stream
from student_trainer.run_facts import Facts
from student_trainer.sources import check_fits, state_source, target_source
from student_trainer.states import (
    MicroStep,
    SequenceReader,
    StateBatch,
)
from student_trainer.store import TargetStore
from student_trainer.store_facts import store_facts
from student_trainer.stream_reader import StreamReader
from student_trainer.student import StudentSpec, build_student
from student_trainer.targets import TargetCounters, TargetSource
from student_trainer.teacher_process import TeacherEndedError, TeacherStartError
from student_trainer.trackers import new_trackers
from student_trainer.trainer import Trainer
from student_trainer.uniform import check_noise

logger = logging.getLogger(__name__)

# Whatever a checkpoint was saved in: in bfloat16, updates below 2^-9 of a weight are lost.
_WEIGHT_DTYPE = torch.float32

EXIT_FAILED = 1
EXIT_MISUSED = 2
FAILURES = (ValueError, OSError, TeacherStartError, TeacherEndedError, errors.TeacherError)
"""What a user can mend: told in a line, without a traceback."""


def run(config: Config, parallel: Parallel) -> None:
    """Builds everything from the configuration and trains."""
    spec = _student_spec(config)
    global_batch_size = _global_batch_size(config, parallel)
    output_dir = Path(config.train.output_dir)
    config_text = config_file.to_yaml(config)
    if parallel.is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "config.yaml").write_text(config_text, encoding="utf-8")
    if config.train.enable_full_determinism:
        torch.use_deterministic_algorithms(True)
    with contextlib.ExitStack() as held, contextlib.ExitStack() as stack:
        teacher = target_source(config, parallel, stack)
        # Sharding moves each rank's share to its device; the whole student never goes there.
        is_sharded = parallel.has_group and config.train.data_parallel_mode != "ddp"
        denoiser = build_student(
            spec, device="cpu" if is_sharded else parallel.device, dtype=_WEIGHT_DTYPE
        )
        check_noise(denoiser.info, config)
        if config.data.packing:
            check_packing(denoiser)
        if teacher is not None:
            check_fits(denoiser.info, teacher, config)
        reader: SequenceReader
        if config.data.streaming:
            reader = stack.enter_context(
                open_run_stream(
                    config, denoiser, parallel, teacher=teacher, global_batch_size=global_batch_size
                )
            )
        else:
            reader = build_reader(
                config, denoiser, parallel, teacher=teacher, global_batch_size=global_batch_size
            )
        source = state_source(config, reader, teacher)
        num_steps = count_steps(config, reader)
        trainer = Trainer(
            config,
            denoiser,
            parallel,
            num_steps=num_steps,
            facts=_facts(config, reader, teacher),
            config_text=config_text,
            teacher_head=None if teacher is None else teacher.sharded_head,
            data=reader if isinstance(reader, StreamReader) else None,
        )
        _announce(denoiser, reader, teacher, num_steps, parallel)
        prefetcher: Prefetcher[MicroStep, list[StateBatch]] = Prefetcher(
            reader.micro_steps(trainer.first_step, num_steps),
            source.states,
            window=config.distill.prefetch_window,
            on_close=None if teacher is None else teacher.close,
        )
        log = None
        if parallel.is_main:
            log = stack.enter_context(
                MetricsLog(
                    output_dir / "metrics.jsonl",
                    num_steps=num_steps,
                    first_step=trainer.first_step,
                    log_every_n_steps=config.train.log_every_n_steps,
                    trackers=new_trackers(
                        config.train,
                        dataclasses.asdict(config),
                        first_step=trainer.first_step,
                    ),
                )
            )
        stack.enter_context(prefetcher)
        # Begun late, since before the first step there is nothing to save; ended last of all.
        request = held.enter_context(StopRequest())
        is_done = trainer.train(
            iter(prefetcher),
            num_micro_steps=reader.num_micro_steps,
            counters=lambda: TargetCounters() if teacher is None else teacher.counters,
            log=log,
            request=request,
        )
        if is_done and config.train.save_hf_weights:
            folder = trainer.export()
            logger.info("exported folder=%s", folder)


def _student_spec(config: Config) -> StudentSpec:
    try:
        return StudentSpec(
            model_path=config.model.model_path,
            config_path=config.model.config_path,
            config_overrides=dict(config.model.config_overrides),
            init_from_teacher=config.init_student_from_teacher,
            teacher_layers=tuple(config.distill.student_layers),
            teacher_model_path=config.distill.teacher_model_path,
            seed=config.train.seed,
        )
    except ValueError as error:
        raise config_file.ConfigError(str(error)) from error


def _global_batch_size(config: Config, parallel: Parallel) -> int:
    unit = config.train.micro_batch_size * parallel.world_size
    size = config.train.global_batch_size or unit
    if size % unit:
        raise config_file.ConfigError(
            f"train.global_batch_size is {size}, which is no multiple of train.micro_batch_size "
            f"{config.train.micro_batch_size} times {parallel.world_size} ranks; use "
            f"{max(unit, size // unit * unit)}"
        )
    return size


def _facts(config: Config, reader: SequenceReader, teacher: TargetSource | None) -> Facts:
    """What decides a run's batches, states and targets beside the step."""
    if teacher is None:
        return reader.facts
    identity = teacher.identity if isinstance(teacher, TargetStore) else None
    revision = {"teacher_revision": teacher.description.revision}
    return reader.facts | revision | store_facts(config, identity)


def _announce(
    denoiser: Denoiser,
    reader: SequenceReader,
    teacher: TargetSource | None,
    num_steps: int,
    parallel: Parallel,
) -> None:
    if not parallel.is_main:
        return
    logger.info(
        "student num_params=%d hidden_size=%d vocab_size=%d ranks=%d device=%s",
        denoiser.info.num_parameters,
        denoiser.info.hidden_size,
        denoiser.info.vocab_size,
        parallel.world_size,
        parallel.device,
    )
    logger.info(
        "data %s steps=%d micro_steps=%d",
        " ".join(f"{name}={value}" for name, value in reader.facts.items()),
        num_steps,
        reader.num_micro_steps,
    )
    if teacher is not None:
        logger.info(
            "teacher name=%s num_params=%d revision=%s",
            teacher.description.name,
            teacher.description.num_parameters,
            teacher.description.revision[:12],
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the arguments say; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{(__doc__ or '').strip()}\n\n{config_file.manual()}")
        return 0 if arguments else EXIT_MISUSED
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        # Ranks beside the first are quiet unless a level is asked for.
        level=os.environ.get("LOG_LEVEL", "WARNING" if rank else "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        config = config_file.load_config(arguments)
        if rank == 0:
            print(config_file.to_yaml(config), flush=True)
        with start_parallel() as parallel:
            run(config, parallel)
    except config_file.ConfigError as error:
        # Every rank reads the same configuration, so one of them tells.
        if rank == 0:
            print(f"distill train: {error}", file=sys.stderr)
        return EXIT_MISUSED
    except FAILURES as error:
        logger.debug("failed", exc_info=True)
        print(f"distill train{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
