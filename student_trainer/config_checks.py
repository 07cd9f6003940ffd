"""Checks that configuration classes make of themselves; the message names field and value."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def require_at_least(least: int, section: str, owner: object, *names: str) -> None:
    """Requires the fields of these names to be unset or no smaller."""
    for name in names:
        value = getattr(owner, name)
        require(value is None or value >= least, f"{section}.{name}", value, f">= {least}")
