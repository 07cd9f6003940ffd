"""The teacher's head in a store: written once, named by its digest, needed by hidden states."""

import json

import numpy as np

from student_trainer.store import safetensors_file
from student_trainer.store.errors import CorruptStoreError, MissingTargetsError
from student_trainer.store.folder import StoreFolder
from student_trainer.wire import WireHead

_DIGEST_CHARACTERS = 16
_FACTS = ("digest", "dtype", "logit_scale", "logit_soft_cap")


def head_name(digest: str) -> str:
    """The file of the head with this digest."""
    return f"head-{digest[:_DIGEST_CHARACTERS]}.safetensors"


def save_head(folder: StoreFolder, head: WireHead) -> None:
    """Writes the head, unless it is there; several processes may at the same time."""
    name = head_name(head.digest)
    if name in folder.names():
        return
    arrays = {"weight": head.weight_VD}
    if head.bias_V is not None:
        arrays["bias"] = head.bias_V
    facts = {fact: getattr(head, fact) for fact in _FACTS}
    facts["crc32c"] = safetensors_file.checksum(arrays)
    content = safetensors_file.to_bytes(
        arrays,
        metadata={"head": json.dumps(facts)},
        bf16=frozenset(arrays) if head.dtype == "bf16" else frozenset(),
    )
    folder.publish(name, content, is_locked=False)


def load_head(folder: StoreFolder, digest: str) -> WireHead:
    """Reads the head.

    Raises:
        MissingTargetsError: it is not there.
        CorruptStoreError: it is not what was written.
    """
    name = head_name(digest)
    if name not in folder.names():
        raise MissingTargetsError(
            f"the store {folder.url} holds hidden states and no head {name}; copy it there, or run "
            "`distill precompute` again, which fetches it from the teacher"
        )
    file = safetensors_file.open_mapped(folder.local_path(name))
    facts = json.loads(file.metadata.get("head", "{}"))
    arrays: dict[str, np.ndarray] = dict(file.arrays)
    if facts.get("digest") != digest or facts["crc32c"] != safetensors_file.checksum(arrays):
        raise CorruptStoreError(f"{folder.url}/{name} is not the head {digest} as it was written")
    del facts["crc32c"]
    return WireHead(weight_VD=arrays["weight"], bias_V=arrays.get("bias"), **facts)
