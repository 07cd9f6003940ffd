"""Batches from a stream: the next sequences, whatever they are."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masked_diffusion.families import DenoiserInfo
from student_trainer.batches import SequenceBatch, pad_sequences, rank_slice
from student_trainer.chunks import Chunking
from student_trainer.config import DataConfig
from student_trainer.data import cut_digest
from student_trainer.data_sources import row_files
from student_trainer.parallel import Parallel
from student_trainer.sequence_stream import SequenceStream
from student_trainer.states import MicroStep, SequenceReader
from student_trainer.window_loader import load_windows
from student_trainer.windows import WindowPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamReader(SequenceReader):
    """Step s takes the sequences from number s times the global batch size on."""

    stream: SequenceStream
    plan: WindowPlan
    batch_size: int
    """Sequences of one optimizer step over all ranks."""

    @property
    def global_batch_size(self) -> int:
        return self.batch_size

    @property
    def facts(self) -> dict[str, int | str]:
        assert self.plan.seed is not None
        return {
            "data_mode": "streaming",
            "global_batch_size": self.batch_size,
            "seed": self.plan.seed,
            "num_files": len(self.plan.files),
            "data_size": sum(file.size for file in self.plan.files),
            "data_cut": cut_digest(self.plan),
            "shuffle_buffer_size": self.plan.num_rows,
        }

    def read(self, micro_step: MicroStep) -> tuple[SequenceBatch, list[int]]:
        """See `SequenceReader.read`; each micro-step is read once."""
        places = self.places(micro_step)
        first = micro_step.step * self.batch_size
        numbers = list(range(first + places.start, first + places.stop))
        sequences = [self.stream.take(number) for number in numbers]
        return pad_sequences(sequences, pad_token_id=self.pad_token_id), numbers

    def position(self, step: int) -> Tensor:
        """[6] int64, alike on all ranks: where the data of a step begin."""
        return self.stream.position(step * self.batch_size)

    def go_to(self, position: Tensor) -> None:
        """Goes on at the position of an earlier run, on any number of ranks and workers."""
        self.stream.go_to(position)


def stream_plan(data: DataConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> WindowPlan:
    """Finds the data of a stream; the same plan on every rank."""
    return WindowPlan(
        files=row_files(data.train_path, selection=data.selection, streaming=True),
        keys=data.keys,
        tokenizer=tokenizer,
        chunking=Chunking(max_seq_len=data.max_seq_len, min_chunk_tokens=data.min_chunk_tokens),
        num_rows=data.shuffle_buffer_size,
        seed=seed,
    )


@contextmanager
def open_stream(
    plan: WindowPlan,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    parallel: Parallel,
    info: DenoiserInfo,
    num_workers: int,
) -> Iterator[StreamReader]:
    """A stream's reader for one rank; its workers end with the context."""
    share = rank_slice(global_batch_size, rank=parallel.rank, world_size=parallel.world_size)
    stream = SequenceStream(
        functools.partial(load_windows, plan, num_workers=num_workers),
        is_own=lambda number: share.start <= number % global_batch_size < share.stop,
    )
    try:
        yield StreamReader(
            stream=stream,
            plan=plan,
            batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            rank=parallel.rank,
            world_size=parallel.world_size,
            info=info,
        )
    finally:
        stream.close()
