"""Which states a store was asked for, as facts that are compared, and orders of the data for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from student_trainer.batches import BatchPlan
from student_trainer.config import Config
from student_trainer.data import TokenizedDataset
from student_trainer.states import BatchReader
from student_trainer.store.errors import StoreError, StoreMismatchError
from student_trainer.store.identity import DATASET_PLAN, PLAN_KIND, RUN_PLAN, Scalar
from student_trainer.store.keys import example_key
from student_trainer.store.reader import StoreReader
from student_trainer.store.target_store import TargetStore


@dataclass(frozen=True, kw_only=True)
class SequentialPlan(BatchPlan):
    """Every sequence in order, each `num_passes` times in a row: what a data set is stored by.

    A sequence's numbers do not depend on how much data there is, so more of it can be added later.
    """

    num_passes: int = 1

    @property
    def num_steps(self) -> int:
        """Batches, the last one perhaps smaller."""
        return -(-self.dataset_size * self.num_passes // self.global_batch_size)

    def sequence_ids(self, step: int) -> list[int]:
        """Numbers of the samples of a step."""
        first = step * self.global_batch_size
        end = min(first + self.global_batch_size, self.dataset_size * self.num_passes)
        return list(range(first, end))

    def sequence_indices(self, step: int) -> list[int]:
        """Dataset index of each sample of a step."""
        return [sample // self.num_passes for sample in self.sequence_ids(step)]


@dataclass(frozen=True, kw_only=True)
class SubsetPlan(BatchPlan):
    """The order of a `BatchPlan` over some sequences of the data only."""

    kept: np.ndarray
    """[dataset_size] indices of these sequences."""

    def sequence_indices(self, step: int) -> list[int]:
        """Dataset index of each sample of a step."""
        return [int(self.kept[index]) for index in super().sequence_indices(step)]


def dataset_key(dataset: TokenizedDataset, index: int) -> bytes:
    """The example key of a sequence of the data."""
    prompt_length = int(dataset.prompt_lengths[index])
    return example_key(dataset.sequence(index), prompt_length=prompt_length)


def covered_sequences(dataset: TokenizedDataset, store: StoreReader) -> np.ndarray:
    """Indices of the sequences that the store has records of.

    Raises:
        StoreError: there are none, or the store is not finished.
    """
    if not store.finished:
        raise StoreError(
            f"the store {store.url} is not finished: run its `distill precompute` again, which "
            "goes on where it ended (only a store of a run's own states can be followed)"
        )
    kept = [
        index
        for index in range(len(dataset))
        if any(
            len(place.shard.records_of(place.number))
            for place in store.find_example(dataset_key(dataset, index))
        )
    ]
    if not kept:
        raise StoreError(
            f"the store {store.url} has targets for none of the {len(dataset)} sequences of "
            "data.train_path; it must be made from the same data with the same data.max_seq_len, "
            "data.min_chunk_tokens, data.text_keys and tokenizer"
        )
    return np.array(kept, dtype=np.int64)


def run_plan(config: Config, reader: BatchReader) -> dict[str, Scalar]:
    """The facts that decide every state of a training run."""
    plan: dict[str, Scalar] = {
        PLAN_KIND: RUN_PLAN,
        "seed": config.train.seed,
        "global_batch_size": reader.plan.global_batch_size,
        "num_sequences": len(reader.dataset),
        "num_data_tokens": len(reader.dataset.token_ids),
    }
    return plan | _state_facts(config)


def dataset_plan(config: Config, *, num_passes: int) -> dict[str, Scalar]:
    """The facts that decide the states of a data set, however much of it."""
    plan: dict[str, Scalar] = {
        PLAN_KIND: DATASET_PLAN,
        "seed": config.train.seed,
        "num_passes": num_passes,
        "max_seq_len": config.data.max_seq_len,
        "min_chunk_tokens": config.data.min_chunk_tokens,
    }
    if config.distill.state_source == "noised":
        # Times are stratified over a batch.
        plan["batch_size"] = config.train.micro_batch_size
    return plan | _state_facts(config)


def _state_facts(config: Config) -> dict[str, Scalar]:
    distill = config.distill
    if distill.state_source == "noised":
        return {
            "state_source": distill.state_source,
            "t_min": config.train.t_min,
            "t_max": config.train.t_max,
        }
    facts: dict[str, Scalar] = {
        "state_source": distill.state_source,
        "collect_every_n_steps": distill.collect_every_n_steps,
        "states_per_trajectory": distill.states_per_trajectory,
        "prompt_fraction": distill.prompt_fraction,
    }
    if distill.states_per_trajectory:
        # Steps are drawn for a micro-batch.
        facts["micro_batch_size"] = config.train.micro_batch_size
    return facts


def check_encoding(config: Config, store: TargetStore) -> None:
    """Refuses a store in another encoding than the configuration says.

    Raises:
        StoreMismatchError: naming the field.
    """
    spec, distill = store.identity.targets, config.distill
    pairs: list[tuple[str, object, object]] = [("encoding", spec.encoding, distill.encoding)]
    if spec.encoding == "top_k":
        pairs.append(("top_k", spec.top_k, distill.top_k))
    if distill.value_dtype != "auto":
        pairs.append(("value_dtype", spec.dtype, distill.value_dtype))
    for name, found, wanted in pairs:
        if found != wanted:
            raise StoreMismatchError(
                f"the store {store.reader.url} has {name} {found!r}, distill.{name} is {wanted!r}; "
                f"set --distill.{name}={found}, or precompute again"
            )


def check_run_plan(config: Config, reader: BatchReader, store: TargetStore) -> None:
    """Refuses a store of another run's states, naming the first fact that differs.

    Raises:
        StoreMismatchError: this run would ask for states that are not there.
    """
    ours: Mapping[str, Scalar] = run_plan(config, reader)
    theirs = store.identity.plan
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise StoreMismatchError(
                f"the store {store.reader.url} holds the states of a run with {name} = "
                f"{theirs.get(name)!r}, this run has {ours.get(name)!r}; use the same setting, or "
                "precompute for this run"
            )
