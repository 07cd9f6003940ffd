"""Names for content: which weights, which head, which vocabulary."""

import hashlib
import json

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


def weights_digest(module: nn.Module) -> str:
    """Digests a module's state dict: names, dtypes, shapes and bytes.

    Tensors that share their memory (a tied head) count once, under the first name. How a
    checkpoint is laid out in files, and on which device it lies, does not matter.

    Returns:
        Hexadecimal BLAKE2b, 32 bytes.
    """
    return _digest(module.state_dict())


def tensors_digest(**tensors: Tensor | None) -> str:
    """Digests named tensors like `weights_digest`; None counts as absent."""
    return _digest({name: tensor for name, tensor in tensors.items() if tensor is not None})


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    seen = set()
    for name, tensor in sorted(tensors.items()):
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digests a vocabulary: every (id, token), added tokens included, in the order of ids.

    Two tokenizers with one fingerprint give every id the same meaning.

    Returns:
        Hexadecimal SHA-256.
    """
    pairs = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
