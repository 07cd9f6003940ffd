"""What reads a run's data: mapped, of a store, or as a stream."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from masked_diffusion.families import Denoiser, DenoiserInfo
from student_trainer.batches import BatchPlan
from student_trainer.config import Config
from student_trainer.data import TokenizedDataset, load_dataset
from student_trainer.parallel import Parallel
from student_trainer.states import (
    BatchReader,
    SequenceReader,
)
from student_trainer.store import TargetStore
from student_trainer.store.identity import DATASET_PLAN
from student_trainer.stored_plan import (
    SubsetPlan,
    covered_sequences,
)
from student_trainer.stream_reader import StreamReader, open_stream, stream_plan
from student_trainer.student import common_info
from student_trainer.targets import TargetSource

logger = logging.getLogger(__name__)


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
def open_run_stream(
    config: Config,
    denoiser: Denoiser,
    parallel: Parallel,
    *,
    teacher: TargetSource | None,
    global_batch_size: int,
) -> Iterator[StreamReader]:
    """Reads the data as they come, and plans nothing ahead.

    Raises:
        ValueError: no tokenizer, no data, or sequences that are too long.
    """
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


def count_steps(config: Config, reader: SequenceReader) -> int:
    """Optimizer steps of the run."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    # A stream without max_steps is refused by the configuration.
    assert isinstance(reader, BatchReader)
    num_sequences = config.train.num_train_epochs * reader.plan.dataset_size
    return math.ceil(num_sequences / reader.global_batch_size)


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
