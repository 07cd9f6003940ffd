"""Conversations in rows."""

import pytest

from student_trainer.chat import read_messages


def message(role, content="text"):
    return {"role": role, "content": content}


def test_every_answer_is_a_beginning_of_the_conversation():
    items = [message("system"), message("user"), message("assistant"), message("user", "more")]
    items.append(message("assistant", "more"))
    found = read_messages({"messages": items}, "messages", "here")
    assert [list(part.items) for part in found] == [items[:3], items]


def test_a_greeting_before_any_question_is_context_and_no_answer():
    items = [message("assistant"), message("user"), message("assistant")]
    (found,) = read_messages({"messages": items}, "messages", "here")
    assert list(found.items) == items


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "t"}, "found keys text"),
        ({"messages": "text"}, "found str at 'messages'"),
        ({"messages": [{"role": "user"}]}, "found list at 'messages'"),
        ({"messages": [message("user", content=None)]}, "'role' and 'content'"),
        ({"messages": [message("user")]}, "no message whose role is 'assistant'"),
        ({"messages": []}, "no message whose role is 'assistant'"),
    ],
)
def test_what_is_no_conversation_is_named(row, told):
    with pytest.raises(ValueError, match=r"^here: ") as error:
        read_messages(row, "messages", "here")
    assert told in str(error.value)
