from hypothesis import given
from hypothesis import strategies as st

from teacher_server.engine.sequence import Capture


@given(step=st.integers(0, 100), every_n_steps=st.integers(1, 12))
def test_every_n_covers_step_0_and_each_nth_after_it(step: int, every_n_steps: int) -> None:
    covered = range(0, 101, every_n_steps)
    assert Capture(every_n_steps=every_n_steps).covers(step) == (step in covered)


@given(step=st.integers(0, 9), steps=st.frozensets(st.integers(0, 9)))
def test_listed_steps_cover_themselves_alone(step: int, steps: frozenset[int]) -> None:
    assert Capture(steps=steps).covers(step) == (step in steps)


@given(step=st.integers(0, 100))
def test_no_choice_covers_nothing(step: int) -> None:
    assert not Capture().covers(step)
