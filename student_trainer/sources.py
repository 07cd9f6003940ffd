"""Where a run's targets come from, and the states that are made with them."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from masked_diffusion.families import DenoiserInfo
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.config import Config
from student_trainer.parallel import Parallel
from student_trainer.replicas import RetryPolicy
from student_trainer.sampler_spec import check_sampler, sampler_spec
from student_trainer.states import (
    BatchReader,
    NoisedStates,
    SequenceReader,
    StateSource,
    TrajectoryStates,
)
from student_trainer.store import StoreExpectations, TargetStore
from student_trainer.store.identity import DATASET_PLAN, RUN_PLAN
from student_trainer.stored_plan import (
    check_encoding,
    check_run_plan,
)
from student_trainer.stored_states import StoredStates
from student_trainer.student import common_info
from student_trainer.targets import RemoteTeacher, TargetSource
from student_trainer.teacher_process import TeacherProcess, TeacherStartError


def target_source(
    config: Config, parallel: Parallel, stack: contextlib.ExitStack
) -> RemoteTeacher | TargetStore | None:
    """The teacher or the store that the configuration names, closed with the stack."""
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


def state_source(
    config: Config, reader: SequenceReader, teacher: TargetSource | None
) -> StateSource:
    """The states of the run, stored or made as it goes.

    Raises:
        ValueError: the store is of another run, or has no substitute for damaged records.
    """
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
