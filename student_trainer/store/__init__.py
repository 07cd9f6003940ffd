"""Targets on disk: precomputed once, trained from in any order and as often as one likes."""

from student_trainer.store.errors import (
    CorruptStoreError,
    MissingTargetsError,
    StoreError,
    StoreMismatchError,
)
from student_trainer.store.reader import StoreReader
from student_trainer.store.target_store import StoreExpectations, TargetStore
from student_trainer.store.writer import StoreWriter

__all__ = [
    "CorruptStoreError",
    "MissingTargetsError",
    "StoreError",
    "StoreExpectations",
    "StoreMismatchError",
    "StoreReader",
    "StoreWriter",
    "TargetStore",
]
