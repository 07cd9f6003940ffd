"""Content keys: one for each question, whoever asks."""

from dataclasses import replace
from typing import Any

import numpy as np

from protos import teacher_pb2
from student_trainer.store.keys import KEY_BYTES, example_key, score_key, score_keys, trajectory_key
from student_trainer.wire import SamplerSpec, TeacherDescription

STATE = np.arange(6)
TEACHER = TeacherDescription.from_message(teacher_pb2.DescribeTeacherResponse(revision="0f"))
SAMPLER = SamplerSpec(algorithm="p2", num_steps=8)


def test_whatever_a_score_depends_on_changes_its_key():
    keys = [
        score_key(STATE, revision="0f"),
        score_key(STATE[::-1], revision="0f"),
        score_key(STATE[:5], revision="0f"),
        score_key(STATE, revision="10"),
        score_key(STATE, revision="0f", clean=STATE),
        score_key(STATE, revision="0f", clean=STATE + 1),
        score_key(STATE, revision="0f", time=0.0),
        score_key(STATE, revision="0f", time=np.nextafter(0.0, 1.0)),
        score_key(STATE, revision="0f", positions=STATE),
        score_key(STATE, revision="0f", positions=STATE[:0]),
        score_key(STATE, revision="0f", positions=STATE[1:]),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_the_integers_of_a_question_are_what_counts_and_not_their_width():
    assert score_key(STATE.astype(np.int16), revision="0f") == score_key(STATE, revision="0f")
    assert example_key(STATE[::1], prompt_length=2) == example_key(STATE.copy(), prompt_length=2)


def test_clean_ids_name_a_score_only_where_the_teacher_sees_them():
    def keys(teacher: TeacherDescription, clean: np.ndarray) -> list[bytes]:
        return score_keys([STATE], teacher=teacher, clean=[clean], times=[0.5], positions=None)

    assert keys(TEACHER, STATE) == keys(TEACHER, STATE + 1)
    block_causal = replace(TEACHER, block_length=4)
    assert keys(block_causal, STATE) != keys(block_causal, STATE + 1)


def test_whatever_a_trajectory_depends_on_changes_its_key():
    def key(**changes: Any) -> bytes:
        question: dict[str, Any] = {
            "frozen": STATE < 2,
            "sequence_id": 1,
            "seed": 0,
            "steps": [0, 4],
            "sampler": SAMPLER,
            "revision": "0f",
        }
        return trajectory_key(STATE, **{**question, **changes})

    others: list[dict[str, Any]] = [
        {"frozen": STATE < 3},
        {"sequence_id": 2},
        {"seed": 1},
        {"steps": [0]},
        {"sampler": replace(SAMPLER, guidance_scale=1.0)},
        {"sampler": replace(SAMPLER, block_length=2)},
        {"revision": "10"},
    ]
    assert len({key(), *(key(**change) for change in others)}) == 1 + len(others)
