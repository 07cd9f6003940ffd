"""Every family against its reference; what is tested for each is in docs/families.md."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
)

from masked_diffusion import checkpoints
from protos import codec
from student_trainer import wire
from student_trainer.client import TeacherClient
from student_trainer.targets import to_tensor
from tests.fixtures import conformance
from tests.fixtures.fixture import FamilyFixture
from tests.fixtures.table import family_fixtures
from tests.servers import serve

FIXTURES = family_fixtures()


@pytest.fixture(scope="module", params=list(FIXTURES))
def fixture(request: pytest.FixtureRequest) -> FamilyFixture:
    return FIXTURES[request.param]


@pytest.fixture(scope="module")
def folder(fixture: FamilyFixture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / fixture.name
    fixture.build(folder)
    return folder


def test_a_family_gives_the_logits_of_its_publication(fixture: FamilyFixture, folder: Path) -> None:
    denoiser = checkpoints.load_denoiser(str(folder), **fixture.load_options)
    found = conformance.compare(denoiser, fixture, folder)
    assert found.logit_max_err <= conformance.TOLERANCE
    assert found.aligned
    assert found.bidirectional
    assert found.batch_invariance_err <= conformance.TOLERANCE


def test_saved_loaded_and_served_it_gives_the_same_numbers(
    fixture: FamilyFixture, folder: Path, tmp_path: Path
) -> None:
    published = checkpoints.load_denoiser(str(folder), **fixture.load_options)
    states = conformance.masked_states(published)
    expected = [conformance.logits(published, [state])[0] for state in states]
    checkpoints.save_denoiser(published, tmp_path / "saved")
    # Without options: the saved config states what the published one did not.
    again = checkpoints.load_denoiser(str(tmp_path / "saved"))
    assert again.info.alignment == published.info.alignment
    assert again.info.mask_token_id == published.info.mask_token_id
    assert again.info.special_token_ids == published.info.special_token_ids
    assert again.info.tokenizer_fingerprint == published.info.tokenizer_fingerprint
    _open_with_transformers(tmp_path / "saved")
    with serve(again) as server, TeacherClient([server.address]) as client:
        records = {
            record.sequence_id: record
            for record in client.score(
                [state.numpy() for state in states],
                sequence_ids=range(len(states)),
                targets=wire.TargetSpec(encoding="logits"),
                times=[conformance.TIME] * len(states),
            )
        }
    for index, (state, logits_LV) in enumerate(zip(states, expected, strict=True)):
        distribution = records[index].distribution
        assert isinstance(distribution, codec.Logits)
        positions = torch.from_numpy(records[index].positions.copy()).long()
        assert torch.equal(positions, (state == again.info.mask_token_id).nonzero()[:, 0])
        served_MV = to_tensor(distribution.values).exp()
        expected_MV = logits_LV[positions].softmax(dim=-1)
        torch.testing.assert_close(served_MV, expected_MV, atol=1e-6, rtol=1e-4)


def _open_with_transformers(folder: Path) -> None:
    """The Auto class of its kind opens the folder, every tensor of it."""
    config = AutoConfig.from_pretrained(folder)
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    auto_class: Any = AutoModelForMaskedLM if is_encoder else AutoModelForCausalLM
    model, report = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.is_causal is False
    assert model.config.mask_token_id is not None
    assert model.config.logit_alignment in ("shifted", "aligned")
