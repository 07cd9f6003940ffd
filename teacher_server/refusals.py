"""How a request is refused: one error that names the field; callers' texts made safe to show."""

from collections.abc import Sized

from protos import errors

MAX_NAME_CHARACTERS = 200


def invalid(field: str, message: str) -> errors.InvalidRequestError:
    """The refusal of a field; the message goes on after its name."""
    return errors.InvalidRequestError(f"{field} {message}", field=field)


def check_count(values: Sized, count: int, *, field: str) -> None:
    """Refuses a list that has not one entry per sequence."""
    if len(values) != count:
        raise invalid(field, f"has {len(values)} entries for {count} sequences")


def check_name(text: str, *, field: str) -> None:
    """Refuses a name that would break a log line, or fill it."""
    if shown(text) != text:
        raise invalid(
            field,
            f"must be at most {MAX_NAME_CHARACTERS} printable characters without spaces, got "
            f"{shown(text)}",
        )


def shown(text: str) -> str:
    """A caller's text for logs and errors: as it is where it is a name, else cut and quoted.

    An error travels in HTTP/2 headers, which hold some 8 KiB.
    """
    if len(text) <= MAX_NAME_CHARACTERS and text.isprintable() and " " not in text:
        return text
    return ascii(text[:MAX_NAME_CHARACTERS])
