"""The denoiser's body through `torch.compile`, for batches of padded rows."""

import os
import shutil
import time
from logging import getLogger

import torch
from torch import Tensor
from torch.nn.functional import pad

from masked_diffusion.families import Denoiser
from teacher_server.engine.fixed_shapes import shape_of

logger = getLogger(__name__)

_WARM_UP_LENGTH = 8


def obstacle(denoiser: Denoiser) -> str | None:
    """Why the body cannot be compiled here, to be read after a colon; None = it may be tried."""
    if denoiser.info.attention == "block_causal":
        return "a block-causal teacher runs by blocks, with its cache"
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r}; install one, or name it in CXX"
    return None


class CompiledBody:
    """Stands for `Denoiser.hidden_states`.

    Sizes are symbols of one graph, but torch makes others for a single row and for batches without
    a mask. Where batches are padded to buckets, as on CUDA, each bucket is captured as a CUDA graph
    when it is first met ("reduce-overhead"). CUDA was never tried.
    """

    def __init__(self, denoiser: Denoiser, *, pads_to_buckets: bool | None = None) -> None:
        """Compiles nothing yet: each graph at its first use, or all of them in `warm_up`.

        Args:
            pads_to_buckets: None = on CUDA only.

        Raises:
            ValueError: there is an `obstacle`.
        """
        reason = obstacle(denoiser)
        if reason is not None:
            raise ValueError(f"compile cannot be used: {reason}")
        on_cuda = denoiser.device.type == "cuda"
        self._denoiser = denoiser
        self._pads_to_buckets = on_cuda if pads_to_buckets is None else pads_to_buckets
        self._forward = torch.compile(
            denoiser.hidden_states, dynamic=True, mode="reduce-overhead" if on_cuda else None
        )

    def __call__(self, x_BL: Tensor, mask_BL: Tensor | None, *, times_B: Tensor) -> Tensor:
        """As `Denoiser.hidden_states`: [B, L, D], of the caller alone."""
        if not self._pads_to_buckets:
            return self._forward(x_BL, mask_BL, times_B=times_B)
        num_rows, length = x_BL.shape
        if mask_BL is None:
            mask_BL = torch.ones_like(x_BL, dtype=torch.bool)
        num_bucket_rows, bucket_length = bucket_of(
            num_rows, length, max_length=self._denoiser.info.max_length
        )
        num_missing = num_bucket_rows - num_rows
        # Rows that nobody asked for: any valid id serves, and something must be attended to.
        missing = (0, bucket_length - length, 0, num_missing)
        mask_BL = pad(mask_BL, missing)
        mask_BL[num_rows:, 0] = True
        torch.compiler.cudagraph_mark_step_begin()
        hidden_BLD = self._forward(
            pad(x_BL, missing), mask_BL, times_B=pad(times_B, (0, num_missing), value=1.0)
        )
        # The next replay of the graph writes into the same memory.
        return hidden_BLD[:num_rows, :length].clone()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compiles every graph, so that no request waits for it: seconds to minutes.

        Raises:
            ValueError: the compiler fails.
        """
        started_s = time.monotonic()
        device = self._denoiser.device
        length = min(_WARM_UP_LENGTH, self._denoiser.info.max_length)
        x_BL = torch.zeros(2, length, dtype=torch.int64, device=device)
        mask_BL = torch.ones_like(x_BL, dtype=torch.bool)
        mask_BL[1, -1] = False
        times_B = torch.ones(2, device=device)
        try:
            for num_rows, mask in ((2, mask_BL), (2, None), (1, None)):
                self(x_BL[:num_rows], mask, times_B=times_B[:num_rows])
        except Exception as error:
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise ValueError(
                f"compile cannot be used: {type(error).__name__}: {said}; serve without --compile"
            ) from error
        logger.info("compiled seconds=%.1f", time.monotonic() - started_s)


def bucket_of(num_rows: int, length: int, *, max_length: int) -> tuple[int, int]:
    """Rows and length that a batch is padded to: a power of two, and the length of a fixed shape.

    So there are few of them: about 4 log2 of the longest length, times log2 of the most rows.
    """
    shape = shape_of(length, max_length=max_length)
    return 1 << (num_rows - 1).bit_length(), shape.length
