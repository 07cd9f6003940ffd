"""How checkpoints are named on the command line."""

import pytest

from student_trainer.evaluation.model_spec import parse_model


def test_name_revision_and_options_are_read():
    spec = parse_model("big=org/model@v1,dtype=bfloat16,adapter=one,adapter=two,mask_token_id=7")
    assert (spec.name, spec.source, spec.revision) == ("big", "org/model", "v1")
    assert (spec.dtype, spec.adapter, spec.mask_token_id) == ("bfloat16", ("one", "two"), 7)


@pytest.mark.parametrize(
    ("text", "name"),
    [("runs/student/hf_ckpt", "student"), ("org/model", "model"), ("hf_ckpt", "hf_ckpt")],
)
def test_the_name_is_the_last_telling_part_of_the_path(text, name):
    assert parse_model(text).name == name


def test_a_path_that_exists_is_taken_whole(tmp_path):
    folder = tmp_path / "a=b,c@d"
    folder.mkdir()
    spec = parse_model(str(folder))
    assert (spec.source, spec.revision, spec.name) == (str(folder), None, "a=b,c@d")
    assert parse_model(f"x={tmp_path}").source == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,dtyp=float32", "did you mean dtype="),
        ("a,dtype=float8", "dtype: Input should be 'auto'"),
        ("a,mask_token_id=x", "mask_token_id: .* valid integer"),
        ("x=", "no path or hub id"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_model(text)


def test_a_revision_that_the_hub_does_not_give_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="cannot read revision 'v9' of 'org/none'"):
        parse_model("org/none@v9").folder(trust_remote_code=False)
