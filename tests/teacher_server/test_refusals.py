import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import errors
from teacher_server import refusals


@given(text=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=200))
def test_a_name_is_shown_as_it_is(text: str) -> None:
    assert refusals.shown(text) == text
    refusals.check_name(text, field="f")


@given(text=st.text(max_size=300))
def test_whatever_is_shown_is_short_and_keeps_to_one_line(text: str) -> None:
    shown = refusals.shown(text)
    assert shown.isprintable()
    # At most ten characters of ASCII for one outside it.
    assert len(shown) <= 10 * refusals.MAX_NAME_CHARACTERS + 2


@pytest.mark.parametrize("text", ["a b", "a\nb", "x" * 201, "\x00"])
def test_a_name_that_would_break_a_log_line_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidRequestError, match=r"^f must be at most 200") as raised:
        refusals.check_name(text, field="f")
    assert raised.value.field == "f"


def test_a_count_that_does_not_fit_is_told_with_both_numbers() -> None:
    refusals.check_count([1, 2], 2, field="f")
    with pytest.raises(errors.InvalidRequestError, match=r"^f has 2 entries for 3 sequences$"):
        refusals.check_count([1, 2], 3, field="f")
