"""Where targets come from: one protocol, and the teacher across the network behind it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from protos import codec, errors
from student_trainer import losses, wire
from student_trainer.client import TeacherClient
from student_trainer.distributions import Head
from student_trainer.replicas import RetryPolicy
from student_trainer.teacher_head import ShardedTeacherHead


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetCounters:
    """What a source did so far."""

    num_retries: int = 0
    """Calls that were made again."""
    num_bytes: int = 0
    """Bytes of targets that arrived."""


class TargetSource(Protocol):
    """Gives the teacher's distributions for states; used by several threads at once."""

    @property
    def description(self) -> wire.TeacherDescription:
        """What the teacher is."""
        ...

    @property
    def counters(self) -> TargetCounters:
        """Totals since the start."""
        ...

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        clean: Sequence[np.ndarray] | None = None,
        times: Sequence[float] | None = None,
        positions: Sequence[np.ndarray] | None = None,
    ) -> list[codec.StepTargets]:
        """One record per state, in the order of the states.

        Args:
            clean: The states without noise, which a block-causal teacher sees before a position's
                own block; others do not.
            states: [L] integer ids each.
            sequence_ids: unique names.
            times: of each state, in [0, 1]; needed where the teacher uses time.
            positions: [M] ascending integers each, where targets are wanted; None = the masked
                ones.
        """
        ...

    def sample(
        self,
        starts: Sequence[np.ndarray],
        *,
        frozen: Sequence[np.ndarray],
        sequence_ids: Sequence[int],
        seed: int,
        steps: Sequence[int],
    ) -> list[codec.StepTargets]:
        """Records of the given steps of each trajectory, by sequence and then by step."""
        ...

    def to_loss_targets(self, records: Sequence[codec.StepTargets]) -> losses.Targets:
        """All positions of all records, in order, as the loss takes them."""
        ...

    def close(self) -> None:
        """Breaks what is in flight."""
        ...


class RemoteTeacher:
    """Targets from teacher servers; holds their head, and nothing else of the teacher."""

    def __init__(
        self,
        client: TeacherClient,
        *,
        spec: wire.TargetSpec,
        sampler: wire.SamplerSpec | None = None,
        device: torch.device | str = "cpu",
        head_shards: tuple[int, int] | None = None,
    ) -> None:
        """Asks what the teacher is and fetches its head, where the encoding needs it.

        Args:
            head_shards: this rank and the number of ranks that divide the head between them; None
                keeps it whole.
        """
        self.client = client
        self.spec = spec
        self.sampler = sampler
        self._device = torch.device(device)
        self.description = client.describe()
        if spec.encoding not in self.description.encodings:
            raise errors.NotOfferedError(
                f"encoding {spec.encoding!r} is not offered by {self.description.name}; offered: "
                f"{', '.join(self.description.encodings)}"
            )
        self._head: losses.TeacherHead | ShardedTeacherHead | None = None
        self.sharded_head: ShardedTeacherHead | None = None
        """The head, where ranks divide it: to be made whole around each step."""
        if spec.encoding == "hidden":
            head = to_teacher_head(client.head(), device=self._device)
            self._head = head
            if head_shards is not None:
                rank, world_size = head_shards
                self.sharded_head = ShardedTeacherHead(head, rank=rank, world_size=world_size)
                self._head = self.sharded_head

    @classmethod
    def connect(
        cls,
        addresses: str | Sequence[str],
        *,
        encoding: wire.Encoding = "hidden",
        top_k: int = 64,
        temperature: float = 1.0,
        timeout_s: float = 120.0,
        device: torch.device | str = "cpu",
    ) -> "RemoteTeacher":
        """Connects to teacher servers; the usual way from a program of one's own.

        Args:
            addresses: HOST:PORT of one server, or of several that serve the same weights.
            encoding: "hidden" is exact, "top_k" the smallest, "logits" for small vocabularies.
            top_k: Ids a position, of "top_k".
            temperature: The distillation temperature, as in `LossConfig`.
            timeout_s: Time without any progress after which a call fails for good.
            device: Where targets are put.

        Raises:
            TeacherError: No server answers in that time, or none offers the encoding.
        """
        client = TeacherClient(addresses, retry=RetryPolicy(give_up_after_s=timeout_s))
        spec = wire.TargetSpec(encoding=encoding, top_k=top_k, temperatures=(temperature,))
        try:
            return cls(client, spec=spec, device=device)
        except BaseException:
            client.close()
            raise

    def __enter__(self) -> "RemoteTeacher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counters(self) -> TargetCounters:
        """Totals since the start."""
        return TargetCounters(
            num_retries=self.client.num_retries, num_bytes=self.client.num_payload_bytes
        )

    def score(
        self,
        states: Sequence[np.ndarray],
        *,
        sequence_ids: Sequence[int],
        clean: Sequence[np.ndarray] | None = None,
        times: Sequence[float] | None = None,
        positions: Sequence[np.ndarray] | None = None,
    ) -> list[codec.StepTargets]:
        """One record per state, in the order of the states."""
        records = {
            record.sequence_id: record
            for record in self.client.score(
                states,
                sequence_ids=sequence_ids,
                targets=self.spec,
                clean=clean,
                times=times,
                positions=positions,
            )
        }
        return [records[sequence_id] for sequence_id in sequence_ids]

    def sample(
        self,
        starts: Sequence[np.ndarray],
        *,
        frozen: Sequence[np.ndarray],
        sequence_ids: Sequence[int],
        seed: int,
        steps: Sequence[int],
    ) -> list[codec.StepTargets]:
        """Records of the given steps of each trajectory, by sequence and then by step."""
        assert self.sampler is not None
        items = self.client.sample(
            starts,
            sequence_ids=sequence_ids,
            seeds=[seed] * len(starts),
            sampler=self.sampler,
            capture=wire.CaptureSpec(steps=tuple(steps)),
            targets=self.spec,
            frozen=frozen,
        )
        records = []
        wanted = set(sequence_ids)
        with contextlib.closing(items):
            for item in items:
                if isinstance(item, codec.StepTargets):
                    records.append(item)
                # The rest of a trajectory is of no use: leaving early frees its rows.
                if not isinstance(item, codec.StepTargets) or item.step >= max(steps):
                    wanted.discard(item.sequence_id)
                if not wanted:
                    break
        place = {sequence_id: index for index, sequence_id in enumerate(sequence_ids)}
        return sorted(records, key=lambda record: (place[record.sequence_id], record.step))

    def to_loss_targets(self, records: Sequence[codec.StepTargets]) -> losses.Targets:
        """All positions of all records, in order, as the loss takes them."""
        return to_loss_targets(
            records,
            head=self._head,
            temperature=self.spec.temperatures[0],
            device=self._device,
        )

    def close(self) -> None:
        """Breaks what is in flight."""
        self.client.close()


def to_teacher_head(head: wire.WireHead, *, device: torch.device | str) -> losses.TeacherHead:
    """The head as the loss takes it."""

    def tensor(data: np.ndarray) -> Tensor:
        return to_tensor(codec.Values(dtype=head.dtype, data=data)).to(device)

    return losses.TeacherHead(
        weight_VD=tensor(head.weight_VD),
        bias_V=None if head.bias_V is None else tensor(head.bias_V),
        logit_scale=head.logit_scale,
        logit_soft_cap=head.logit_soft_cap,
    )


def to_tensor(values: codec.Values) -> Tensor:
    """A CPU tensor with its own memory, bfloat16 where the wire's dtype is."""
    return _joined([values])


def _joined(values: Sequence[codec.Values]) -> Tensor:
    """One tensor of all their rows, by a single copy where they share a dtype."""
    if len({value.dtype for value in values}) > 1:
        return torch.cat([to_tensor(value) for value in values])
    # Arrays of the wire are read-only views of a message; torch wants to own what it may write.
    tensor = torch.from_numpy(np.concatenate([value.data for value in values]))
    return tensor.view(torch.bfloat16) if values[0].dtype == "bf16" else tensor


def to_loss_targets(
    records: Sequence[codec.StepTargets],
    *,
    head: Head | None,
    temperature: float,
    device: torch.device | str = "cpu",
) -> losses.Targets:
    """Concatenates the positions of records of one encoding.

    Args:
        head: for hidden states; None else.
        temperature: the distillation temperature, one of those asked for.

    Raises:
        ValueError: no records, mixed encodings, or a temperature that was not asked for.
    """
    kinds = {type(record.distribution) for record in records}
    if len(kinds) != 1:
        raise ValueError(
            f"records must share one encoding, got {sorted(k.__name__ for k in kinds)}"
        )
    (kind,) = kinds
    distributions = [record.distribution for record in records]
    if kind is codec.TopK:
        parts = [part for part in distributions if isinstance(part, codec.TopK)]
        return _top_k(parts, temperature, device)
    values = [part.values for part in distributions if not isinstance(part, codec.TopK)]
    rows = _joined(values).to(device)
    if kind is codec.Logits:
        return losses.LogitsTargets(rows.float())
    if head is None:
        raise ValueError("hidden states need the teacher's head")
    return losses.HiddenTargets(rows, head)


def _top_k(
    parts: Sequence[codec.TopK], temperature: float, device: torch.device | str
) -> losses.TopKTargets:
    counts_M = np.concatenate([np.diff(part.row_offsets) for part in parts])
    token_ids = torch.from_numpy(np.concatenate([part.token_ids for part in parts], dtype=np.int64))
    # numpy takes ten times as long from float16 to float32.
    log_probs = _joined([part.log_probs for part in parts]).float()
    valid_MK = torch.from_numpy(np.arange(counts_M.max(initial=0)) < counts_M[:, None])
    index = _temperature_index(parts[0].temperatures, temperature)
    normalizers_M = np.concatenate([part.log_normalizers[index] for part in parts])
    tails_M = np.concatenate([part.tail_log_masses[index] for part in parts])
    return losses.TopKTargets(
        token_ids_MK=_padded(token_ids, valid_MK).to(device),
        valid_MK=valid_MK.to(device),
        log_probs_MK=_padded(log_probs, valid_MK).to(device),
        log_normalizer_M=torch.from_numpy(normalizers_M).to(device),
        tail_log_mass_M=torch.from_numpy(tails_M).to(device),
    )


def _padded(numbers: Tensor, valid_MK: Tensor) -> Tensor:
    """[M, K] of ragged rows that lie one after another, zeros where nothing is valid."""
    if numbers.numel() == valid_MK.numel():
        # Nothing is ragged, as without top-p: an assignment through the mask is ten times slower.
        return numbers.view(valid_MK.shape)
    padded_MK = numbers.new_zeros(valid_MK.shape)
    padded_MK[valid_MK] = numbers
    return padded_MK


def _temperature_index(temperatures: np.ndarray, wanted: float) -> int:
    found = np.flatnonzero(temperatures == np.float32(wanted))
    if not len(found):
        raise ValueError(f"targets hold temperatures {temperatures.tolist()}, not {wanted}")
    return int(found[0])
