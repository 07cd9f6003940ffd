"""Rows of any length in one forward: what each gets is what it gets alone."""

import json
from pathlib import Path

import pytest
import torch

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, ragged
from tests.fixtures import conformance
from tests.fixtures.table import family_fixtures

# One of each architecture that transformers' attention table serves, and of both alignments.
DECODERS = ["diffugpt-m", "llada", "open-dcoder", "qwen3"]
OTHERS = ["bert", "sdar"]


def _load(name: str, folder: Path) -> Denoiser:
    fixture = family_fixtures()[name]
    fixture.build(folder)
    return checkpoints.load_denoiser(str(folder), **fixture.load_options)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_row_of_any_length_comes_out_as_alone(name: str, tmp_path: Path) -> None:
    denoiser = _load(name, tmp_path / name)
    states = conformance.masked_states(denoiser, [3, 3, 5, 12, 12, 12, 20])
    alone = [denoiser.hidden_states(state[None])[0] for state in states]
    assert denoiser.enable_ragged()
    lengths = [len(state) for state in states]
    together = denoiser.ragged_hidden_states(torch.cat(states), lengths).split(lengths)
    for hidden_LD, alone_LD in zip(together, alone, strict=True):
        torch.testing.assert_close(hidden_LD, alone_LD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padded_calls_and_the_saved_config_stay_as_they_were(tmp_path: Path) -> None:
    denoiser = _load("open-dcoder", tmp_path / "published")
    short, long = conformance.masked_states(denoiser, [7, 12])
    x_BL = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    mask_BL = torch.arange(12) < torch.tensor([[7], [12]])
    before_BLD = denoiser.hidden_states(x_BL, mask_BL)
    assert denoiser.enable_ragged() and denoiser.enable_ragged()
    assert torch.equal(denoiser.hidden_states(x_BL, mask_BL), before_BLD)
    checkpoints.save_denoiser(denoiser, tmp_path / "saved")
    assert ragged.ATTENTION not in json.dumps(
        json.loads((tmp_path / "saved" / "config.json").read_text())
    )


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_says_so(name: str, tmp_path: Path) -> None:
    assert not _load(name, tmp_path / name).enable_ragged()
