import dataclasses
import math

import pytest

from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig

POSITIVE = [
    (owner, field.name)
    for owner in (EngineConfig, LimitsConfig)
    for field in dataclasses.fields(owner)
    if field.name
    not in (
        "max_padding_fraction",
        "max_cache_bytes",
        "pad_rows",
        "compile",
        "hold_until_rows",
        "deterministic",
    )
]


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize(("owner", "name"), POSITIVE)
def test_sizes_and_times_must_be_positive_and_finite(owner: type, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be positive and finite, got {value}$"):
        owner(**{name: value})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["drain_timeout_s", "status_interval_s"])
def test_waits_may_be_0_but_not_negative_or_endless(name: str, value: float) -> None:
    ServerConfig(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{name} must be finite and not negative, got {value}$"):
        ServerConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["max_cache_bytes", "hold_until_rows"])
def test_a_cache_and_a_hold_may_be_0_but_not_negative_or_endless(name: str, value: float) -> None:
    EngineConfig(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{name} must be finite and not negative"):
        EngineConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_padding_fraction_lies_below_1(value: float) -> None:
    with pytest.raises(ValueError, match=r"max_padding_fraction must be in \[0, 1\)"):
        EngineConfig(max_padding_fraction=value)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:50051", "localhost:65535"])
def test_an_address_has_a_host_and_a_port(listen: str) -> None:
    assert ServerConfig(listen=listen).listen == listen


@pytest.mark.parametrize("listen", ["", ":50051", "127.0.0.1", "127.0.0.1:", "a:b", "a:65536"])
def test_an_address_without_host_or_port_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="listen must be HOST:PORT"):
        ServerConfig(listen=listen)


def test_it_listens_on_the_loopback_by_default() -> None:
    assert ServerConfig().listen.startswith("127.0.0.1:")
