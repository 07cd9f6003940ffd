"""Names for content: which weights, which head, which vocabulary."""

import hashlib
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedTokenizerBase


def weights_digest(module: nn.Module) -> str:
    """Digests a module's state dict, names, dtypes, shapes and bytes, and how it is called.

    For a denoiser the second is what a loading option may change: mask id, alignment, block length
    and noise. Servers that differ there give other distributions from the same weights.

    Tensors that share their memory (a tied head) count once, under the first name. How a
    checkpoint is laid out in files, on which device it lies, and over how many ranks it is split,
    does not matter; where it is split, all ranks must call this.

    Returns:
        Hexadecimal BLAKE2b, 32 bytes.
    """
    digest = _digest(module.state_dict())
    info = getattr(module, "info", None)
    if info is None:
        return digest
    how = (info.mask_token_id, info.alignment, info.block_length, info.noise)
    return hashlib.blake2b(f"{digest}|{how}".encode(), digest_size=32).hexdigest()


def tensors_digest(**tensors: Tensor | None) -> str:
    """Digests named tensors like `weights_digest`; None counts as absent."""
    return _digest({name: tensor for name, tensor in tensors.items() if tensor is not None})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    seen = set()
    for name, tensor in sorted(tensors.items()):
        for part_name, part in plain_parts(name, tensor):
            local = part.to_local() if isinstance(part, DTensor) else part
            place = (local.device, local.data_ptr(), local.shape, local.stride())
            if local.numel() and place in seen:
                continue
            seen.add(place)
            if isinstance(part, DTensor):
                # One whole tensor at a time, so that the model need not fit on a device.
                part = part.full_tensor()  # noqa: PLW2901
            digest.update(f"{part_name}|{part.dtype}|{tuple(part.shape)}|".encode())
            raw = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().data)
    return digest.hexdigest()


def plain_parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields a tensor as what lies in memory: a quantized one is its integers and its scales."""
    if is_traceable_wrapper_subclass(tensor) and not isinstance(tensor, DTensor):
        inner_names, _ = tensor.__tensor_flatten__()
        for inner_name in inner_names:
            inner = getattr(tensor, inner_name)
            if inner is not None:
                yield from plain_parts(f"{name}.{inner_name}", inner)
    else:
        yield name, tensor


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digests a vocabulary: every (id, token), added tokens included, in the order of ids.

    Two tokenizers with one fingerprint give every id the same meaning.

    Returns:
        Hexadecimal SHA-256.
    """
    pairs = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
