"""Random records of each encoding, as a teacher with a vocabulary of 151,936 would send them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from protos import codec
from student_trainer.store.records import StoredRecord, Unit
from student_trainer.wire import Encoding

VOCAB_SIZE, HIDDEN_SIZE, TOP_K = 151_936, 896, 64
MASK_TOKEN_ID = 151_665
REVISION = "no-model"


@dataclass(frozen=True, kw_only=True)
class Records:
    """Sequences of which every second position is masked."""

    encoding: Encoding
    num_sequences: int
    length: int

    @property
    def num_positions(self) -> int:
        """Masked positions of a sequence."""
        return self.length // 2

    def units(self) -> Iterator[Unit]:
        """The same ones at every call."""
        rng = np.random.default_rng(0)
        for number in range(self.num_sequences):
            state = rng.integers(0, MASK_TOKEN_ID, self.length, dtype=np.int32)
            masked = np.sort(rng.permutation(self.length)[: self.num_positions])
            state[masked] = MASK_TOKEN_ID
            targets = codec.StepTargets(
                sequence_id=number,
                step=0,
                time=0.5,
                revision=REVISION,
                tokenizer_fingerprint="",
                state=state,
                state_digest=codec.state_digest(state),
                unmask_steps=None,
                num_forwards=1,
                positions=masked.astype("<i4"),
                distribution=_distribution(rng, self.encoding, self.num_positions),
            )
            record = StoredRecord(targets=targets, t=0.5, num_maskable=self.length)
            yield Unit(key=self.key(number), records=(record,))

    @staticmethod
    def key(number: int) -> bytes:
        """A hash, as real keys are."""
        return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def _distribution(rng: np.random.Generator, encoding: str, rows: int) -> codec.Distribution:
    """Random numbers: ids uniform over the vocabulary, the worst case of every coding."""
    if encoding == "hidden":
        bits = rng.integers(0, 2**15, (rows, HIDDEN_SIZE), dtype=np.uint16)
        return codec.Hidden(values=codec.Values(dtype="bf16", data=bits))
    if encoding == "logits":
        log_probs = rng.random((rows, VOCAB_SIZE), dtype=np.float32) * -20
        return codec.Logits(values=codec.Values(dtype="f16", data=log_probs.astype("<f2")))
    strata = VOCAB_SIZE // TOP_K
    ids = np.arange(TOP_K) * strata + rng.integers(0, strata, (rows, TOP_K))
    return codec.TopK(
        row_offsets=np.arange(rows + 1, dtype="<i4") * TOP_K,
        token_ids=ids.astype("<i4").ravel(),
        log_probs=codec.Values(dtype="f16", data=rng.uniform(-9, 0, rows * TOP_K).astype("<f2")),
        temperatures=np.ones(1, dtype="<f4"),
        log_normalizers=np.zeros((1, rows), dtype="<f4"),
        tail_log_masses=rng.uniform(-9, 0, (1, rows)).astype("<f4"),
    )
