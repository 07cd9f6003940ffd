"""The stream: what it gives, to how many ranks, from where on, and made by whom."""

import dataclasses
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from student_trainer.chunks import Chunking
from student_trainer.client import TeacherClient
from student_trainer.data import load_dataset
from student_trainer.data_sources import row_files
from student_trainer.parallel import Parallel
from student_trainer.row_keys import RowKeys
from student_trainer.states import MicroStep
from student_trainer.stream_reader import StreamReader, open_stream
from student_trainer.window_loader import load_windows
from student_trainer.windows import WindowPlan, WindowStart
from tests import training
from tests.servers import serve

CHUNKING = Chunking(max_seq_len=24, min_chunk_tokens=4)
GLOBAL_BATCH_SIZE = 8
NUM_STEPS = 16
"""More than one epoch."""

Sequence = tuple[tuple[int, ...], int]
"""Ids and the length of the prompt."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 5, 0 and 9 rows of which some give several sequences, and one of text."""
    folder = tmp_path_factory.mktemp("data")
    rows = [json.dumps({"text": text}) + "\n" for text in training.texts(14)]
    for name, part in {"a": rows[:5], "b": [], "c": rows[5:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(part))
    (folder / "d.txt").write_text("".join(training.texts(3)))
    return folder


@pytest.fixture
def plan(folder, tiny_tokenizer) -> WindowPlan:
    return new_plan(folder, tiny_tokenizer)


def new_plan(path: Path, tokenizer, *, keys: RowKeys | None = None, seed=5) -> WindowPlan:
    return WindowPlan(
        files=row_files(str(path)),
        keys=keys or RowKeys(),
        tokenizer=tokenizer,
        chunking=CHUNKING,
        num_rows=4,
        seed=seed,
    )


@contextmanager
def reader(
    plan: WindowPlan, info, *, rank=0, world_size=1, num_workers=0
) -> Iterator[StreamReader]:
    with open_stream(
        plan,
        global_batch_size=GLOBAL_BATCH_SIZE,
        micro_batch_size=2,
        parallel=Parallel(device=torch.device("cpu"), rank=rank, world_size=world_size),
        info=info,
        num_workers=num_workers,
    ) as opened:
        yield opened


def sequences(reader: StreamReader, steps: Iterable[int]) -> dict[int, Sequence]:
    """All sequences of a rank by their numbers."""
    found: dict[int, Sequence] = {}
    for step in steps:
        for index in range(reader.num_micro_steps):
            batch, numbers = reader.read(MicroStep(step, index))
            rows = zip(batch.input_ids_BL, batch.lengths_B, batch.prompt_lengths_B, strict=True)
            for number, (ids_L, length, prompt_length) in zip(numbers, rows, strict=True):
                assert number not in found
                found[number] = tuple(ids_L[:length].tolist()), int(prompt_length)
    return found


@pytest.fixture
def whole(plan, tiny_denoiser) -> dict[int, Sequence]:
    """What one undisturbed rank reads."""
    with reader(plan, tiny_denoiser.info) as undisturbed:
        return sequences(undisturbed, range(NUM_STEPS))


def test_an_epoch_holds_the_sequences_of_the_mapped_data_once_each(
    folder, plan, whole, tiny_tokenizer
):
    mapped = load_dataset(
        str(folder),
        text_keys=["text"],
        tokenizer=tiny_tokenizer,
        max_seq_len=CHUNKING.max_seq_len,
        min_chunk_tokens=CHUNKING.min_chunk_tokens,
    )
    size = len(mapped)
    assert size < len(whole) < 3 * size
    wanted = Counter(tuple(mapped.sequence(index).tolist()) for index in range(size))
    assert Counter(whole[number][0] for number in range(size)) == wanted
    second = [whole[number][0] for number in range(size, min(2 * size, len(whole)))]
    assert not Counter(second) - wanted
    # Neither in the files' order nor twice in the same one.
    first = [whole[number][0] for number in range(size)]
    assert first != [tuple(mapped.sequence(index).tolist()) for index in range(size)]
    assert first[: len(second)] != second


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_ranks_read_what_one_does(plan, whole, tiny_denoiser, world_size):
    together: dict[int, Sequence] = {}
    for rank in range(world_size):
        with reader(plan, tiny_denoiser.info, rank=rank, world_size=world_size) as one:
            share = sequences(one, range(NUM_STEPS))
        assert not share.keys() & together.keys()
        together |= share
    assert together == whole


@pytest.mark.parametrize("step", [1, 2, 5, 11])
def test_it_goes_on_where_it_was_on_another_number_of_ranks(plan, whole, tiny_denoiser, step):
    with reader(plan, tiny_denoiser.info, rank=1, world_size=2) as interrupted:
        # Read ahead, as prefetching does.
        sequences(interrupted, range(step + 2))
        position = interrupted.position(step)
    later: dict[int, Sequence] = {}
    for rank in range(4):
        with reader(plan, tiny_denoiser.info, rank=rank, world_size=4) as resumed:
            resumed.go_to(position)
            later |= sequences(resumed, range(step, NUM_STEPS))
            # And once more from there.
            assert torch.equal(resumed.position(NUM_STEPS)[-1:], torch.tensor([NUM_STEPS * 8]))
    first = step * GLOBAL_BATCH_SIZE
    assert later == {number: item for number, item in whole.items() if number >= first}


def test_the_position_before_anything_is_read_reads_nothing(folder, tiny_tokenizer, tiny_denoiser):
    plan = new_plan(folder, tiny_tokenizer)
    with reader(plan, tiny_denoiser.info) as unread:
        assert unread.position(0).tolist() == [0] * 6
        unread.go_to(torch.zeros(6, dtype=torch.int64))


def test_reading_draws_nothing_from_the_generator_of_the_training(plan, tiny_denoiser):
    before = torch.get_rng_state()
    with reader(plan, tiny_denoiser.info) as opened:
        sequences(opened, range(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_window_is_a_function_of_where_it_begins(plan):
    with closing(plan.windows(WindowStart())) as windows:
        seen = [next(windows) for _ in range(12)]
    for window in seen:
        again = next(plan.windows(window.start))
        assert again.start == window.start
        assert [piece.tolist() for piece in again.chunks.pieces] == [
            piece.tolist() for piece in window.chunks.pieces
        ]


def test_workers_beside_a_live_channel_neither_hang_nor_warn_nor_change_anything(
    plan, whole, tiny_denoiser, capfd
):
    with serve(tiny_denoiser) as server, TeacherClient(server.address) as client:
        before = client.load()
        with reader(plan, tiny_denoiser.info, num_workers=2) as helped:
            found = sequences(helped, range(3))
            assert len(client.load()) == len(before)
            position = helped.position(3)
            found |= sequences(helped, range(3, NUM_STEPS))
        assert len(client.load()) == len(before)
    assert found == whole
    assert capfd.readouterr().err == ""
    # Where a run with workers was is where one without them goes on.
    with reader(plan, tiny_denoiser.info) as alone:
        alone.go_to(position)
        later = sequences(alone, range(3, NUM_STEPS))
    assert later == {number: whole[number] for number in later}
    assert len(later) == (NUM_STEPS - 3) * GLOBAL_BATCH_SIZE
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_one_error(plan):
    with closing(load_windows(plan, num_workers=1)) as windows:
        next(windows)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        with pytest.raises(ChildProcessError, match=r"a process of data.num_workers died"):
            for _ in windows:
                pass


@pytest.mark.parametrize("content", ["", '{"text": "x"}\n'])
def test_data_without_a_sequence_are_not_read_for_ever(
    content, tiny_tokenizer, tiny_denoiser, tmp_path
):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with (
        reader(new_plan(path, tiny_tokenizer), tiny_denoiser.info) as empty,
        pytest.raises(ValueError, match=r"a whole pass over data.train_path gives no sequence"),
    ):
        sequences(empty, range(1))


def test_a_broken_row_is_named_when_its_window_is_read(tiny_tokenizer, tiny_denoiser, tmp_path):
    path = tmp_path / "a.jsonl"
    good = "".join(json.dumps({"text": text}) + "\n" for text in training.texts(8))
    path.write_text(good + "{broken\n")
    with reader(new_plan(path, tiny_tokenizer), tiny_denoiser.info) as opened:
        sequences(opened, range(1))
        # Each of the threads that read ahead meets it, not only the first.
        for _ in range(3):
            with pytest.raises(ValueError, match=r"a.jsonl, line 9: not valid JSON"):
                opened.stream.take(1_000_000)
        with pytest.raises(ValueError, match=r"a.jsonl, line 9: not valid JSON"):
            opened.position(1_000_000)


def test_the_prompt_of_a_pair_is_never_maskable(tiny_tokenizer, tiny_denoiser, tmp_path):
    path = training.write_texts(tmp_path)
    keys = RowKeys(prompt=("prompt",), answer=("answer",))
    plan = dataclasses.replace(
        new_plan(path, tiny_tokenizer, keys=keys),
        chunking=Chunking(max_seq_len=400, min_chunk_tokens=4),
    )
    with reader(plan, tiny_denoiser.info) as opened:
        batch, _ = opened.read(MicroStep(0, 0))
        maskable_BL = opened.maskable(batch)
    places_L = torch.arange(maskable_BL.shape[1])
    assert bool((batch.prompt_lengths_B > 1).all())
    assert not maskable_BL[places_L < batch.prompt_lengths_B[:, None]].any()
    assert bool(maskable_BL.any(-1).all())
