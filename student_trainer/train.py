"""`torchrun -m student_trainer.train CONFIG.yaml --section.field=value`: one training run.

Exit codes: 0 done, 1 failed, 2 misused.
"""

import contextlib
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from masked_diffusion.families import Denoiser, DenoiserInfo
from protos import errors
from student_trainer import config_file, wire
from student_trainer.batches import BatchPlan
from student_trainer.client import TeacherClient
from student_trainer.config import Config
from student_trainer.data import TokenizedDataset, load_dataset
from student_trainer.interrupt import StopRequest
from student_trainer.metrics import MetricsLog
from student_trainer.packing import check_packing
from student_trainer.parallel import Parallel, start_parallel
from student_trainer.prefetch import Prefetcher
from student_trainer.replicas import RetryPolicy
from student_trainer.run_facts import Facts
from student_trainer.sampler_spec import check_sampler, sampler_spec
from student_trainer.states import (
    BatchReader,
    MicroStep,
    NoisedStates,
    SequenceReader,
    StateBatch,
    StateSource,
    TrajectoryStates,
)
from student_trainer.store import StoreExpectations, TargetStore
from student_trainer.store.identity import DATASET_PLAN, RUN_PLAN
from student_trainer.store_facts import store_facts
from student_trainer.stored_plan import (
    SubsetPlan,
    check_encoding,
    check_run_plan,
    covered_sequences,
)
from student_trainer.stored_states import StoredStates
from student_trainer.stream_reader import StreamReader, open_stream, stream_plan
from student_trainer.student import StudentSpec, build_student, common_info
from student_trainer.targets import RemoteTeacher, TargetCounters, TargetSource
from student_trainer.teacher_process import TeacherEndedError, TeacherProcess, TeacherStartError
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
        teacher = _target_source(config, parallel, stack)
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
                _stream(
                    config, denoiser, parallel, teacher=teacher, global_batch_size=global_batch_size
                )
            )
        else:
            reader = build_reader(
                config, denoiser, parallel, teacher=teacher, global_batch_size=global_batch_size
            )
        source = _source(config, reader, teacher)
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


def _target_source(
    config: Config, parallel: Parallel, stack: contextlib.ExitStack
) -> RemoteTeacher | TargetStore | None:
    if not config.uses_teacher:
        return None
    distill = config.distill
    if not distill.use_stored_logits:
        return connect_teacher(config, parallel, stack)
    assert distill.stored_logits_path is not None
    store = TargetStore(
        distill.stored_logits_path,
        temperature=distill.temperature,
        device=parallel.device,
        expected=StoreExpectations(revision=distill.teacher_revision),
        wait_s=distill.teacher_timeout_s,
        head_shards=_head_shards(config, parallel),
        skip_corrupt=distill.stored_logits_skip_corrupt,
    )
    return stack.enter_context(store)


def connect_teacher(
    config: Config,
    parallel: Parallel,
    stack: contextlib.ExitStack,
    *,
    teacher_arguments: Sequence[str] = (),
) -> RemoteTeacher:
    """Connects to the teacher that the configuration names; starts one where it has no address.

    Args:
        teacher_arguments: further ones for a teacher-server that is started.

    Raises:
        ValueError: it has another revision than distill.teacher_revision.
        TeacherStartError: the local one ended before it was ready.
    """
    distill = config.distill
    address, own_server = distill.teacher_address, None
    if not address:
        assert distill.teacher_model_path is not None
        address, own_server = _start_local_teacher(
            distill.teacher_model_path,
            Path(config.train.output_dir),
            parallel,
            stack,
            extra_arguments=[
                *(["--deterministic"] if config.train.enable_full_determinism else []),
                *teacher_arguments,
            ],
        )
    client = stack.enter_context(
        TeacherClient(
            address,
            retry=RetryPolicy(
                call_timeout_s=distill.call_timeout_s, give_up_after_s=distill.teacher_timeout_s
            ),
            client_id=f"rank{parallel.rank}-{os.getpid()}",
            check_alive=None if own_server is None else own_server.check_alive,
        )
    )
    revision = client.describe().revision
    if distill.teacher_revision not in (None, revision):
        raise ValueError(
            f"distill.teacher_revision is {distill.teacher_revision!r}, the teacher serves "
            f"{revision!r}; name the right teacher or its revision"
        )
    return RemoteTeacher(
        client,
        spec=wire.TargetSpec(
            encoding=distill.encoding,
            dtype=distill.value_dtype,
            top_k=distill.top_k,
            temperatures=(distill.temperature,),
        ),
        sampler=sampler_spec(distill),
        device=parallel.device,
        head_shards=_head_shards(config, parallel),
    )


def _head_shards(config: Config, parallel: Parallel) -> tuple[int, int] | None:
    if not parallel.has_group or config.train.data_parallel_mode == "ddp":
        return None
    return parallel.rank, parallel.world_size


def _start_local_teacher(
    model: str,
    output_dir: Path,
    parallel: Parallel,
    stack: contextlib.ExitStack,
    *,
    extra_arguments: Sequence[str] = (),
) -> tuple[str, TeacherProcess | None]:
    """One server a node, started by its first rank, which alone gets hold of it.

    Every rank learns its own node's address.
    """
    address, failure, process = "", "", None
    if parallel.local_rank == 0:
        log_path = output_dir / f"teacher_server_{parallel.rank}.log"
        try:
            process = TeacherProcess(model, log_path=log_path, extra_arguments=extra_arguments)
            address = stack.enter_context(process).address
        except TeacherStartError as error:
            failure = str(error)
    # A large teacher loads for longer than a collective waits.
    parallel.meet()
    answers = parallel.gather((address, failure))
    for _, problem in answers:
        if problem:
            raise TeacherStartError(problem)
    first_rank_here = parallel.rank - parallel.local_rank
    return answers[first_rank_here][0], process


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


def count_steps(config: Config, reader: SequenceReader) -> int:
    """Optimizer steps of the run."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    # A stream without max_steps is refused by the configuration.
    assert isinstance(reader, BatchReader)
    num_sequences = config.train.num_train_epochs * reader.plan.dataset_size
    return math.ceil(num_sequences / reader.global_batch_size)


def check_fits(info: DenoiserInfo, teacher: TargetSource, config: Config) -> None:
    """Refuses a teacher or a store that speaks of other ids, or cannot take such requests.

    Args:
        info: of the student.

    Raises:
        ValueError: naming what does not fit.
    """
    description = teacher.description
    common_info(info, description)
    if config.data.max_seq_len > description.max_length:
        raise ValueError(
            f"data.max_seq_len is {config.data.max_seq_len}, the teacher's maximum is "
            f"{description.max_length}; lower data.max_seq_len"
        )
    if isinstance(teacher, TargetStore):
        # What follows are limits of requests, and nothing is asked.
        check_encoding(config, teacher)
        return
    num_tokens = config.train.micro_batch_size * config.data.max_seq_len
    if num_tokens > description.max_tokens:
        raise ValueError(
            f"train.micro_batch_size times data.max_seq_len is {num_tokens} tokens, the teacher "
            f"takes {description.max_tokens} a request; lower train.micro_batch_size"
        )
    if config.train.micro_batch_size > description.max_sequences:
        raise ValueError(
            f"train.micro_batch_size is {config.train.micro_batch_size}, the teacher takes "
            f"{description.max_sequences} sequences a request; lower it"
        )
    algorithm = config.distill.diffusion_sampling_alg
    if config.distill.state_source == "trajectory" and algorithm not in description.algorithms:
        raise ValueError(
            f"distill.diffusion_sampling_alg {algorithm!r} is not offered by the teacher; offered: "
            f"{', '.join(description.algorithms)}"
        )


def build_reader(
    config: Config,
    denoiser: Denoiser,
    parallel: Parallel,
    *,
    teacher: TargetSource | None,
    global_batch_size: int,
) -> BatchReader:
    """Reads the data and plans its order.

    Args:
        denoiser: of it, only the facts and the tokenizer.

    Raises:
        ValueError: no tokenizer, no data, or sequences that are too long.
    """
    tokenizer = _check_readable(config, denoiser)
    cache = config.data.cache_dir or str(Path(config.train.output_dir) / "data_cache")
    # The others read the cache that the first rank of their machine has written.
    with parallel.first_of_node_goes_first():
        dataset: TokenizedDataset = load_dataset(
            config.data.train_path,
            text_keys=config.data.text_keys,
            tokenizer=tokenizer,
            max_seq_len=config.data.max_seq_len,
            min_chunk_tokens=config.data.min_chunk_tokens,
            cache_folder=Path(cache),
            keys=config.data.keys,
            selection=config.data.selection,
            num_workers=config.data.num_workers,
        )
    return BatchReader(
        dataset=dataset,
        plan=_plan(config, dataset, teacher, global_batch_size),
        micro_batch_size=config.train.micro_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        info=_predicted(denoiser.info, teacher),
    )


@contextlib.contextmanager
def _stream(
    config: Config,
    denoiser: Denoiser,
    parallel: Parallel,
    *,
    teacher: TargetSource | None,
    global_batch_size: int,
) -> Iterator[StreamReader]:
    tokenizer = _check_readable(config, denoiser)
    # What the hub answers is kept for the other ranks of the machine.
    with parallel.first_of_node_goes_first():
        plan = stream_plan(config.data, tokenizer, seed=config.train.seed)
    with open_stream(
        plan,
        global_batch_size=global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        parallel=parallel,
        info=_predicted(denoiser.info, teacher),
        num_workers=config.data.num_workers,
    ) as reader:
        yield reader


def _check_readable(config: Config, denoiser: Denoiser) -> PreTrainedTokenizerBase:
    if denoiser.tokenizer is None:
        raise ValueError(
            f"{denoiser.info.name} has no tokenizer to read data.train_path with; put the "
            "tokenizer's files into its folder"
        )
    if config.data.max_seq_len > denoiser.info.max_length:
        raise ValueError(
            f"data.max_seq_len is {config.data.max_seq_len}, the student's maximum is "
            f"{denoiser.info.max_length}; lower it, or raise max_position_embeddings"
        )
    return denoiser.tokenizer


def _predicted(info: DenoiserInfo, teacher: TargetSource | None) -> DenoiserInfo:
    return info if teacher is None else common_info(info, teacher.description)


def _plan(
    config: Config,
    dataset: TokenizedDataset,
    teacher: TargetSource | None,
    global_batch_size: int,
) -> BatchPlan:
    if isinstance(teacher, TargetStore) and teacher.identity.kind == DATASET_PLAN:
        kept = covered_sequences(dataset, teacher.reader)
        logger.info("store sequences=%d of=%d", len(kept), len(dataset))
        return SubsetPlan(
            dataset_size=len(kept),
            global_batch_size=global_batch_size,
            seed=config.train.seed,
            kept=kept,
        )
    return BatchPlan(
        dataset_size=len(dataset),
        global_batch_size=global_batch_size,
        seed=config.train.seed,
    )


def _facts(config: Config, reader: SequenceReader, teacher: TargetSource | None) -> Facts:
    """What decides a run's batches, states and targets beside the step."""
    if teacher is None:
        return reader.facts
    identity = teacher.identity if isinstance(teacher, TargetStore) else None
    revision = {"teacher_revision": teacher.description.revision}
    return reader.facts | revision | store_facts(config, identity)


def _source(config: Config, reader: SequenceReader, teacher: TargetSource | None) -> StateSource:
    if isinstance(teacher, TargetStore):
        # A stream with a store is refused by the configuration.
        assert isinstance(reader, BatchReader)
        if teacher.identity.kind == DATASET_PLAN:
            return StoredStates(
                reader=reader, config=config.train, distill=config.distill, store=teacher
            )
        if teacher.identity.kind == RUN_PLAN:
            check_run_plan(config, reader, teacher)
        check_sampler(config.distill, teacher)
    if config.distill.stored_logits_skip_corrupt and config.distill.use_stored_logits:
        raise ValueError(
            "distill.stored_logits_skip_corrupt is true, but the store holds the states of a run: "
            "none of them has a substitute; use `distill store verify --drop` and precompute again"
        )
    return live_states(config, reader, teacher)


def live_states(
    config: Config, reader: SequenceReader, teacher: TargetSource | None
) -> NoisedStates | TrajectoryStates:
    """The states of a run, made as it goes; the teacher may be a recording or a store."""
    if teacher is not None and config.distill.state_source == "trajectory":
        return TrajectoryStates(
            reader=reader, config=config.train, distill=config.distill, teacher=teacher
        )
    return NoisedStates(reader=reader, config=config.train, teacher=teacher)


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
