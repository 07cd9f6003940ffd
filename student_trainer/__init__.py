"""Trains a small student denoiser from a teacher that runs somewhere else.

The names below are the library: see docs/library.md. They are imported when first used, so that a
command that needs no torch does not wait for it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protos.errors import TeacherError
    from student_trainer.batches import BatchPlan
    from student_trainer.data import TokenizedDataset, load_dataset
    from student_trainer.losses import LossConfig, distillation_loss
    from student_trainer.noising import Noising
    from student_trainer.objective import DistillationObjective, Objective
    from student_trainer.prefetch import Prefetcher
    from student_trainer.samples import RunSamples, Sample, StateCollator
    from student_trainer.states import StateBatch, with_targets
    from student_trainer.store import StoreError, StoreExpectations, TargetStore
    from student_trainer.student import StudentSpec, build_student, common_info
    from student_trainer.targets import RemoteTeacher, TargetSource

_MODULES = {
    "BatchPlan": "student_trainer.batches",
    "DistillationObjective": "student_trainer.objective",
    "LossConfig": "student_trainer.losses",
    "Noising": "student_trainer.noising",
    "Objective": "student_trainer.objective",
    "Prefetcher": "student_trainer.prefetch",
    "RemoteTeacher": "student_trainer.targets",
    "RunSamples": "student_trainer.samples",
    "Sample": "student_trainer.samples",
    "StateBatch": "student_trainer.states",
    "StateCollator": "student_trainer.samples",
    "StoreError": "student_trainer.store",
    "StoreExpectations": "student_trainer.store",
    "StudentSpec": "student_trainer.student",
    "TargetSource": "student_trainer.targets",
    "TargetStore": "student_trainer.store",
    "TeacherError": "protos.errors",
    "TokenizedDataset": "student_trainer.data",
    "build_student": "student_trainer.student",
    "common_info": "student_trainer.student",
    "distillation_loss": "student_trainer.losses",
    "load_dataset": "student_trainer.data",
    "with_targets": "student_trainer.states",
}

__all__ = [
    "BatchPlan",
    "DistillationObjective",
    "LossConfig",
    "Noising",
    "Objective",
    "Prefetcher",
    "RemoteTeacher",
    "RunSamples",
    "Sample",
    "StateBatch",
    "StateCollator",
    "StoreError",
    "StoreExpectations",
    "StudentSpec",
    "TargetSource",
    "TargetStore",
    "TeacherError",
    "TokenizedDataset",
    "build_student",
    "common_info",
    "distillation_loss",
    "load_dataset",
    "with_targets",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
