"""The command `distill`: what it is told, what it says, how it ends."""

import pytest

from student_trainer import cli
from tests.servers import serve


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag, capsys):
    assert cli.main([flag]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "precompute", "store", "demo", "evaluate", "describe"):
        assert f"\n  {command} " in shown


def test_no_command_is_a_misuse(capsys):
    assert cli.main([]) == cli.EXIT_MISUSED
    assert "usage: distill COMMAND" in capsys.readouterr().err


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    assert cli.main(["destill"]) == cli.EXIT_MISUSED
    assert capsys.readouterr().err == (
        "distill: unknown command 'destill'; known: train, precompute, store, demo, evaluate, "
        "describe\n"
    )


def test_train_is_the_trainer(capsys):
    assert cli.main(["train", "--train.lrr=1"]) == 2
    assert capsys.readouterr().err == (
        "distill train: unknown setting 'train.lrr'; did you mean 'train.lr'?\n"
    )


def test_describe_prints_what_a_server_offers(tiny_denoiser, capsys):
    with serve(tiny_denoiser) as server:
        assert cli.main(["describe", server.address]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"vocab_size: {tiny_denoiser.info.vocab_size}" in shown
    assert f"mask_token_id: {tiny_denoiser.info.mask_token_id}" in shown
    assert "encodings: ('hidden', 'top_k', 'logits')" in shown


def test_describe_wants_one_address(capsys):
    assert cli.main(["describe", "--help"]) == 0
    assert capsys.readouterr().out == "usage: distill describe HOST:PORT\n"
    for arguments in ([], ["a:1", "b:1"], ["--quick"]):
        assert cli.main(["describe", *arguments]) == cli.EXIT_MISUSED
        assert capsys.readouterr().err == "usage: distill describe HOST:PORT\n"
    assert cli.main(["describe", ""]) == cli.EXIT_FAILED
    assert "teacher_address is empty" in capsys.readouterr().err
