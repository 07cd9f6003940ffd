import pytest

from teacher_server import server as server_module


def test_ranks_are_started_by_torchrun(monkeypatch, capsys, tiny_checkpoint):
    monkeypatch.delenv("RANK", raising=False)
    code = server_module.main([f"--model={tiny_checkpoint}", "--tensor-parallel"])
    assert code == server_module.EXIT_FAILED
    assert "start them with torchrun --standalone" in capsys.readouterr().err


def test_ranks_choose_their_device_themselves(capsys):
    with pytest.raises(SystemExit) as caught:
        server_module.main(["--model=any", "--tensor-parallel", "--device=cpu"])
    assert caught.value.code == server_module.EXIT_MISUSED
    assert "--device must be auto with --tensor-parallel, got cpu" in capsys.readouterr().err
