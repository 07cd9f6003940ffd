import argparse
from dataclasses import dataclass

import pytest

from teacher_server.config import EngineConfig, LimitsConfig, ServerConfig
from teacher_server.options import add_options, field_docs, read_options


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    """A group."""

    num_things: int = 3
    """How many things, 100% of them."""
    share: float = 0.5
    """What share."""
    name: str = "x"
    """What name."""
    is_on: bool = False
    """Whether it is on."""

    def __post_init__(self) -> None:
        if self.num_things < 0:
            raise ValueError(f"num_things must not be negative, got {self.num_things}")


def _read(*arguments: str) -> _Config:
    parser = argparse.ArgumentParser()
    add_options(parser, _Config)
    return read_options(parser.parse_args(arguments), _Config)


def test_no_option_means_the_defaults_of_the_dataclass() -> None:
    assert _read() == _Config()


def test_an_option_sets_its_field() -> None:
    read = _read("--num-things=7", "--share", "0.25", "--name=y", "--is-on")
    assert read == _Config(num_things=7, share=0.25, name="y", is_on=True)


def test_the_dataclass_checks_its_values() -> None:
    with pytest.raises(ValueError, match="num_things must not be negative, got -1"):
        _read("--num-things=-1")


def test_help_is_the_text_under_the_field() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, _Config)
    text = " ".join(parser.format_help().split())
    assert "A group." in text
    assert "--num-things NUM_THINGS How many things, 100% of them. (default: 3)" in text


@pytest.mark.parametrize("config_class", [ServerConfig, EngineConfig, LimitsConfig])
def test_every_field_of_the_servers_configuration_has_its_text(config_class: type) -> None:
    assert set(field_docs(config_class)) == set(config_class.__slots__)  # type: ignore[attr-defined]
