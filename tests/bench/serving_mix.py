"""What the clients of the serving bench ask for. Imports no torch: eight processes do."""

from dataclasses import dataclass

import numpy as np

from protos import teacher_pb2 as pb

ROWS = 4
_MIN_LENGTH = 32
_ALGORITHMS = (pb.ALGORITHM_P2, pb.ALGORITHM_ENTROPY, pb.ALGORITHM_ORIGIN)
_TARGETS = (
    pb.TargetSpec(encoding=pb.ENCODING_HIDDEN, dtype=pb.VALUE_DTYPE_F16),
    pb.TargetSpec(encoding=pb.ENCODING_TOP_K, top_k=64),
)
_CAPTURES = (
    pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=1),
    pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=8),
    pb.Capture(kind=pb.CAPTURE_KIND_NONE),
)
COLLECT_EVERY_N_STEPS = 4

Ask = pb.ScoreStatesRequest | pb.SampleTrajectoriesRequest


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Endless requests of one client; the same seed gives the same ones."""

    vocab_size: int
    max_length: int
    seed: int
    is_original: bool = False
    """As the original scheme ran: P2 trajectories of equal length, collected every few steps."""

    def request(self, index: int) -> Ask:
        """The request of this index."""
        random = np.random.default_rng([self.seed, index])
        if self.is_original:
            return self._original(random)
        lengths = random.integers(_MIN_LENGTH, self.max_length + 1, ROWS)
        states = [self._state(random, length, random.uniform(0.2, 0.9)) for length in lengths]
        targets = _TARGETS[random.integers(len(_TARGETS))]
        context = pb.RequestContext(client_id=f"client{self.seed}")
        if random.random() < 0.4:
            return pb.ScoreStatesRequest(
                context=context, states=_sequences(states), targets=targets
            )
        return pb.SampleTrajectoriesRequest(
            context=context,
            start_states=_sequences(states),
            seeds=random.integers(1 << 30, size=ROWS).tolist(),
            sampler=_sampler(
                _ALGORITHMS[random.integers(len(_ALGORITHMS))],
                num_steps=int(random.choice([8, 16, 32, 64])),
            ),
            capture=_CAPTURES[random.integers(len(_CAPTURES))],
            targets=targets,
        )

    def _original(self, random: np.random.Generator) -> pb.SampleTrajectoriesRequest:
        length = int(random.integers(_MIN_LENGTH, self.max_length + 1))
        # A quarter is the prompt, and all else is to be generated.
        states = [self._state(random, length, 0.75, is_suffix=True) for _ in range(ROWS)]
        return pb.SampleTrajectoriesRequest(
            context=pb.RequestContext(client_id=f"client{self.seed}"),
            start_states=_sequences(states),
            seeds=random.integers(1 << 30, size=ROWS).tolist(),
            sampler=_sampler(pb.ALGORITHM_P2, num_steps=16),
            capture=pb.Capture(kind=pb.CAPTURE_KIND_EVERY_N, every_n_steps=COLLECT_EVERY_N_STEPS),
            targets=_TARGETS[0],
        )

    def _state(
        self, random: np.random.Generator, length: int, share: float, *, is_suffix: bool = False
    ) -> np.ndarray:
        ids = random.integers(3, self.vocab_size - 1, length).astype("<i4")
        num_masked = max(1, int((length - 1) * share))
        open_L = np.arange(1, length)
        chosen = open_L[-num_masked:] if is_suffix else random.permutation(open_L)[:num_masked]
        ids[chosen] = self.vocab_size - 1
        return ids


def _sampler(algorithm: pb.Algorithm, *, num_steps: int) -> pb.SamplerSpec:
    """With the original scheme's defaults."""
    return pb.SamplerSpec(
        algorithm=algorithm, num_steps=num_steps, temperature=0.7, top_k=200, alg_temp=0.5
    )


def _sequences(states: list[np.ndarray]) -> pb.Sequences:
    return pb.Sequences(
        sequence_ids=range(len(states)),
        lengths=[len(state) for state in states],
        token_ids=b"".join(state.tobytes() for state in states),
    )
