"""One teacher over several ranks: rank 0 serves, the others run every forward along with it.

Started by torchrun; the layers are split by transformers' own plan. Rank 0 tells the others of each
forward before it runs it. A rank that dies ends them all: their collectives fail.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser
from teacher_server.engine.model_runner import DenoiserLostError

COLLECTIVE_TIMEOUT_S = 600.0
"""Of the collectives within a forward or a load: the ranks read their shares at unlike speeds."""
_STOP = 0
_FORWARD = 1


def serve_in_ranks(
    load: Callable[[], Denoiser],
    serve: Callable[[Denoiser, str], bool],
    *,
    max_silence_s: float,
) -> bool:
    """Loads on all ranks; then rank 0 serves and the others follow, until it is asked to stop.

    Args:
        load: Gives this rank's share of the denoiser; called on every rank.
        serve: (denoiser, revision) -> whether it ended as asked; called on rank 0.
        max_silence_s: A follower that hears nothing from rank 0 for this long gives up.

    Returns:
        Whether this rank ended as asked.

    Raises:
        ValueError: not started by torchrun, or what `load` raises.
        DenoiserLostError: another rank died or fell silent.
    """
    control = _join_ranks(max_silence_s=max_silence_s)
    denoiser = load()
    revision = checkpoints.weights_digest(denoiser)
    if dist.get_rank() == 0:
        leader = LeadingDenoiser(denoiser, control)
        if not serve(leader, revision):
            # Not left in good order: a group that lost a rank may wait for it for long.
            return False
        leader.stop()
    else:
        follow(denoiser, control)
    dist.destroy_process_group()
    return True


class LeadingDenoiser(Denoiser):
    """Rank 0's: lets the other ranks take part in each forward. One thread at a time."""

    def __init__(self, denoiser: Denoiser, control: dist.ProcessGroup) -> None:
        # Not Denoiser's own: the facts are known, and describing the model anew could differ.
        nn.Module.__init__(self)
        self.model = denoiser.model
        self.tokenizer = denoiser.tokenizer
        self.info = denoiser.info
        self._denoiser = denoiser
        self._control = control

    @property
    def head_weight(self) -> nn.Parameter:
        return self._denoiser.head_weight

    @property
    def head_bias(self) -> Tensor | None:
        return self._denoiser.head_bias

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        *,
        times_B: Tensor | None = None,
        clean_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Same as that of the whole denoiser.

        Raises:
            ValueError: clean ids, which block-causal denoisers alone take; they are not sharded.
            DenoiserLostError: whatever failed: the ranks may have stopped at different places.
        """
        if clean_ids_BL is not None:
            raise ValueError("clean_ids_BL must be None: a tensor-parallel denoiser has no blocks")
        try:
            _send_forward(input_ids_BL, attention_mask_BL, times_B, self._control)
            return self._denoiser.hidden_states(input_ids_BL, attention_mask_BL, times_B=times_B)
        except Exception as error:
            raise DenoiserLostError(f"the ranks are out of step: {error}") from error

    def stop(self) -> None:
        """Ends the other ranks."""
        with _losing("a rank died"):
            dist.broadcast(_header(_STOP), src=0, group=self._control)
            # Rank 0 takes the connections away when it ends: not before all have read.
            dist.barrier(group=self._control)


@torch.inference_mode()
def follow(denoiser: Denoiser, control: dist.ProcessGroup) -> None:
    """Runs rank 0's forwards along with it until it says stop.

    Raises:
        DenoiserLostError: rank 0 died or fell silent, or a forward failed.
    """
    with _losing("rank 0 is gone, or a forward failed"):
        while True:
            header = _header()
            dist.broadcast(header, src=0, group=control)
            kind, batch_size, length, has_mask, has_times = header.tolist()
            if kind == _STOP:
                dist.barrier(group=control)
                return
            ids_BL = torch.empty(batch_size, length, dtype=torch.int64)
            mask_BL = torch.empty(batch_size, length, dtype=torch.uint8) if has_mask else None
            times_B = torch.empty(batch_size, dtype=torch.float32) if has_times else None
            for tensor in (ids_BL, mask_BL, times_B):
                if tensor is not None:
                    dist.broadcast(tensor, src=0, group=control)
            device = denoiser.device
            denoiser.hidden_states(
                ids_BL.to(device),
                None if mask_BL is None else mask_BL.to(device, torch.bool),
                times_B=None if times_B is None else times_B.to(device),
            )


def _send_forward(
    ids_BL: Tensor, mask_BL: Tensor | None, times_B: Tensor | None, control: dist.ProcessGroup
) -> None:
    batch_size, length = ids_BL.shape
    has_mask, has_times = mask_BL is not None, times_B is not None
    header = _header(_FORWARD, batch_size, length, has_mask, has_times)
    dist.broadcast(header, src=0, group=control)
    for tensor, dtype in (
        (ids_BL, torch.int64),
        (mask_BL, torch.uint8),
        (times_B, torch.float32),
    ):
        if tensor is not None:
            dist.broadcast(tensor.to("cpu", dtype).contiguous(), src=0, group=control)


def _header(*values: int) -> Tensor:
    """[5] int64 on the CPU: kind, batch size, length, whether a mask and times follow."""
    header = torch.zeros(5, dtype=torch.int64)
    header[: len(values)] = torch.tensor(values, dtype=torch.int64)
    return header


def _join_ranks(*, max_silence_s: float) -> dist.ProcessGroup:
    """Joins the ranks that torchrun started; gives the group that forwards are told over.

    That is gloo on any device: its waits have a time limit of their own, and end at once where the
    other end died.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            "--tensor-parallel needs one process for each share of the model; start them with "
            "torchrun --standalone --nproc-per-node 2 -m teacher_server.server ..."
        )
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if device is None else "nccl",
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        device_id=device,
    )
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=max_silence_s))
    assert isinstance(control, dist.ProcessGroup)
    if dist.get_rank() != 0:
        logging.disable(logging.INFO)
        # torchrun and terminals signal all ranks, but rank 0 still has streams to finish.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return control


@contextlib.contextmanager
def _losing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DenoiserLostError(f"{what}: {error}") from error
