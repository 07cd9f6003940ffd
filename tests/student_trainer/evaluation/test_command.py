"""`distill evaluate` as a user runs it, and whom it refuses."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from masked_diffusion.checkpoints import (
    load_denoiser,
    new_denoiser,
    save_denoiser,
    weights_digest,
)
from masked_diffusion.families.mdlm_config import MdlmConfig
from student_trainer import cli
from student_trainer.evaluation import command
from student_trainer.evaluation.likelihood import nelbo
from student_trainer.evaluation.states import held_out_states
from tests import training
from tests.causal_models import save_causal_model
from tests.fixtures import block_diffusion, mdlm
from tests.held_out import held_out_dataset
from tests.tiny_models import qwen2_config, train_tokenizer

# One process loads three models and two scorers and draws five figures; machines are shared.
pytestmark = pytest.mark.timeout(300)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[3]
SMALL = (
    *("--max_seq_len", "32", "--gen_length", "24", "--min_chunk_tokens", "8"),
    *("--num_sequences", "12", "--masks_per_sequence", "2", "--num_bins", "2"),
    *("--num_samples", "4", "--steps", "2,6", "--num_infills", "6", "--infilling_spans", "1,3"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return training.write_texts(folder, num_documents=40)


@pytest.fixture(scope="module")
def student(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "hf_ckpt"
    config = qwen2_config(vocab_size=len(tiny_tokenizer), hidden_size=16)
    save_denoiser(new_denoiser(config, tiny_tokenizer, seed=3), folder)
    return folder


@pytest.fixture(scope="module")
def other_family(tmp_path_factory) -> Path:
    """Another architecture, and another tokenizer."""
    folder = tmp_path_factory.mktemp("mdlm")
    mdlm.build(folder, time_conditioning=True)
    return folder


@pytest.fixture(scope="module")
def outcome(tiny_checkpoint, student, other_family, data, tmp_path_factory):
    """One run over two families, with a teacher, a model of the hub and two kinds of scorers."""
    folder = tmp_path_factory.mktemp("run")
    # A hub's cache as a download leaves it.
    cached = folder / "home" / "hub" / "models--org--tiny"
    shutil.copytree(student, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text(COMMIT, encoding="utf-8")
    scorer = save_causal_model(folder / "scorer", train_tokenizer(training.texts(), vocab_size=290))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "student_trainer.cli", "evaluate", *SMALL),
            *("--teacher", str(tiny_checkpoint), "--model", "hub=org/tiny@v1"),
            *("--model", f"mdlm={other_family}", "--skip_self_test"),
            *("--data_path", str(data), "--output_dir", str(folder / "out")),
            *("--scorer", f"ar:{scorer}", "--scorer", f"masked:{tiny_checkpoint}"),
            *("--samplers", "ancestral,low_confidence:block_length=6:temperature=0.5"),
        ],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    values = json.loads((folder / "out" / "evaluation.json").read_text(encoding="utf-8"))
    return folder / "out", values, result


def test_all_four_outputs_are_written(outcome):
    folder, values, result = outcome
    assert values["schema_version"] == 1
    assert list(values["evaluations"]) == ["likelihood", "agreement", "samples", "infilling"]
    for title in ("Held-out NELBO", "KL(teacher, model)", "Samples, judged by", "In-filling"):
        assert title in result.stdout
    table = (folder / "table.txt").read_text(encoding="utf-8")
    assert table.splitlines() == result.stdout.splitlines()[: len(table.splitlines())]
    images = sorted(folder.glob("*.png"))
    assert [path.stem for path in images] == [
        *("agreement", "infilling", "likelihood", "samples_0", "samples_1"),
    ]
    page = (folder / "index.html").read_text(encoding="utf-8")
    embedded = [base64.b64decode(image) for image in re.findall(r"base64,([^\"]+)\"", page)]
    assert sorted(embedded) == sorted(path.read_bytes() for path in images)
    assert all(image.startswith(PNG_SIGNATURE) for image in embedded)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page), "nothing is fetched"


def test_progress_and_settings_are_told_on_stderr(outcome):
    _, values, result = outcome
    assert "num_sequences: 12\n" in result.stderr
    assert "measured model=hub evaluation=likelihood" in result.stderr
    assert values["config"]["samplers"] == [
        "ancestral", "low_confidence:block_length=6:temperature=0.5",
    ]  # fmt: skip
    assert values["config"]["seed"] == 1234


def test_models_are_named_by_their_content(outcome, student, tiny_checkpoint):
    _, values, _ = outcome
    teacher, hub, mdlm_facts = values["models"]
    assert [m["name"] for m in values["models"]] == ["teacher", "hub", "mdlm"]
    assert (teacher["is_teacher"], hub["hub_revision"]) == (True, "v1")

    assert hub["revision"] == weights_digest(load_denoiser(str(student)))
    assert mdlm_facts["family"] == "mdlm"
    assert mdlm_facts["tokenizer_fingerprint"] != hub["tokenizer_fingerprint"]


def test_likelihood_and_paired_differences_are_those_of_plain_calls(
    outcome, tiny_checkpoint, student, data
):
    _, values, _ = outcome
    found = values["evaluations"]["likelihood"]
    teacher, hub = (load_denoiser(str(path)) for path in (tiny_checkpoint, student))
    tokenizer = teacher.tokenizer
    assert tokenizer is not None
    dataset = held_out_dataset(data, tokenizer, max_seq_len=32, min_chunk_tokens=8)
    states = held_out_states(
        dataset, denoiser_info=teacher.info, num_sequences=12, seed=1234, masks_per_sequence=2
    )
    wanted = [nelbo(model, states, batch_size=5) for model in (teacher, hub)]
    for one, result in zip(found["models"], wanted, strict=False):
        np.testing.assert_allclose(
            one["nats_per_token_by_sequence"], result.per_sequence, rtol=1e-5
        )
        tokens = states.maskable_BL[::2].sum(dim=1).tolist()
        num_bytes = sum(
            len(str(tokenizer.decode(x0_L[maskable_L].tolist())).encode())
            for x0_L, maskable_L in zip(states.x0_BL[::2], states.maskable_BL[::2], strict=True)
        )
        nats = float(np.dot(result.per_sequence, tokens))
        assert one["num_bytes"] == num_bytes
        assert one["bits_per_byte"] == pytest.approx(nats / np.log(2) / num_bytes, rel=1e-5)
    # Only two of the three share a vocabulary.
    (pair,) = found["differences"]
    assert (pair["model"], pair["minus"]) == ("hub", "teacher")
    differences = wanted[1].per_sequence - wanted[0].per_sequence
    assert pair["difference"]["mean"] == pytest.approx(differences.mean(), rel=1e-4)
    half_width = 2.201 * differences.std(ddof=1) / np.sqrt(12)
    assert pair["difference"]["ci95"] == pytest.approx(half_width, rel=1e-4)


def test_a_model_of_another_vocabulary_is_left_out_of_agreement_and_named(outcome):
    _, values, result = outcome
    assert [m["model"] for m in values["evaluations"]["agreement"]["models"]] == ["hub"]
    (skipped,) = values["skipped"]
    assert (skipped["evaluation"], skipped["model"]) == ("agreement", "mdlm")
    assert "left out: agreement of mdlm: teacher and student differ in" in result.stdout


def test_every_perplexity_stands_beside_entropy_diversity_and_cost(outcome):
    folder, values, result = outcome
    points = values["evaluations"]["samples"]["points"]
    references = [point for point in points if point["sampler"] is None]
    assert len(references) == 2, "one for each tokenizer"
    assert len(points) == 2 + 3 * 2 * 2
    for point in points:
        assert [p["kind"] for p in point["perplexities"]] == ["autoregressive", "masked"]
        for found in point["perplexities"]:
            assert found["perplexity"] == pytest.approx(np.exp(found["nats_per_token"]))
            per_byte = found["nats_per_token"] * found["num_tokens"] / found["num_bytes"]
            assert found["bits_per_byte"] == pytest.approx(per_byte / np.log(2))
        diversity = point["diversity"]
        assert diversity["entropy_nats"] > 0
        assert set(diversity["distinct"]) == {"1", "2", "3"}
        if point["sampler"]:
            assert 0 < point["cost"]["num_forwards"] <= point["num_steps"]
            assert point["cost"]["seconds"] > 0
    for header in re.findall(r".*perplexity.*", result.stdout):
        if "┃" in header:
            assert all(word in header for word in ("entropy", "distinct-2", "forwards", "s/sample"))
    rows = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == len(points) * 4


def evaluate(*arguments, data, output_dir):
    return command.main(
        [*SMALL, *map(str, arguments), "--data_path", str(data), "--output_dir", str(output_dir)]
    )


@pytest.fixture(scope="module")
def uniform(tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uniform") / "model"
    config = MdlmConfig(
        vocab_size=len(tiny_tokenizer), hidden_dim=16, n_heads=2, n_blocks=1, model_length=64,
        mask_token_id=tiny_tokenizer.mask_token_id,
    )  # fmt: skip
    config.noise = "uniform"
    save_denoiser(new_denoiser(config, tiny_tokenizer, seed=0), folder)
    return folder


def test_uniform_noise_has_samples_and_agreement_and_no_likelihood(uniform, data, tmp_path, capsys):
    models = ("--teacher", uniform, "--model", f"copy={uniform}", "--skip_self_test")
    assert evaluate(*models, data=data, output_dir=tmp_path) == 0
    values = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert set(values["evaluations"]) == {"agreement", "samples", "infilling"}
    assert {(s["evaluation"], s["model"]) for s in values["skipped"]} == {
        ("likelihood", "teacher"), ("likelihood", "copy"),
    }  # fmt: skip
    (agreement,) = values["evaluations"]["agreement"]["models"]
    assert (agreement["overall"]["kl_nats"], agreement["overall"]["top1_agreement"]) == (0, 1)
    samplers = {p["sampler"] for p in values["evaluations"]["samples"]["points"]}
    assert samplers == {None, "multinomial"}
    assert "perplexity" not in capsys.readouterr().out, "no scorer was given"

    asked = ("--evaluations", "likelihood")
    assert evaluate(*models, *asked, data=data, output_dir=tmp_path / "no") == command.EXIT_FAILED
    assert "--evaluations likelihood does not apply to teacher" in capsys.readouterr().err
    asked = ("--samplers", "entropy")
    assert evaluate(*models, *asked, data=data, output_dir=tmp_path / "no") == command.EXIT_FAILED
    assert "algorithm must be one of multinomial for uniform noise" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_block_causal_model_is_measured_with_clean_earlier_blocks(data, tmp_path):
    folder = tmp_path / "sdar"
    block_diffusion.FIXTURES[0].build(folder)
    models = ("--model", folder, "--skip_self_test")
    assert evaluate(*models, data=data, output_dir=tmp_path / "out") == 0
    values = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    (found,) = values["evaluations"]["likelihood"]["models"]
    denoiser = load_denoiser(str(folder), run_self_test=False)
    dataset = held_out_dataset(data, denoiser.tokenizer, max_seq_len=32, min_chunk_tokens=8)
    states = held_out_states(
        dataset, denoiser_info=denoiser.info, num_sequences=12, seed=1234, masks_per_sequence=2
    )
    # Plainly: for a masked position, its own block is noisy and all earlier ones are clean.
    wanted = np.zeros(12)
    block_length = denoiser.info.block_length
    for row, length in enumerate(states.lengths_B.tolist()):
        x0_L, xt_L = states.x0_BL[row, :length], states.xt_BL[row, :length]
        masked = states.masked_BL[row, :length].nonzero()[:, 0].tolist()
        for place in masked:
            start = place // block_length * block_length
            seen_L = xt_L.clone()
            seen_L[:start] = x0_L[:start]
            seen_L = seen_L[: start + block_length]
            logits_LV = denoiser.logits(denoiser.hidden_states(seen_L[None])[0]).double()
            ce = -float(logits_LV[place].log_softmax(-1)[x0_L[place]].detach())
            wanted[states.sequences_B[row]] += ce / len(masked) / 2
    np.testing.assert_allclose(found["nats_per_token_by_sequence"], wanted, rtol=1e-4)
    samplers = {p["sampler"] for p in values["evaluations"]["samples"]["points"]}
    assert samplers == {None, "low_confidence"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0,4"), "--steps must be different numbers of at least 1, got [0, 4]"),
        (("--num_bins", "many"), "num_bins: Input should be a valid integer"),
        (("--samplers", "entropi"), "did you mean 'entropy'"),
        (("--evaluations", "likelyhood"), "known: likelihood, agreement, samples, infilling"),
        (("--scorer", "gpt2"), "--scorer must be ar:MODEL"),
        (("--gen_length", "64"), "--gen_length must be at most max_seq_len (32)"),
        (("--prompt_tokens", "24"), "--prompt_tokens must be below gen_length (24)"),
        (("--model", "x,dtyp=auto"), "did you mean dtype="),
    ],
)
def test_a_setting_that_is_not_allowed_is_a_misuse(arguments, message, student, tmp_path, capsys):
    code = evaluate("--model", student, *arguments, data="d", output_dir=tmp_path)
    assert code == command.EXIT_MISUSED
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "case",
    [
        (("--model", "/nowhere/model"), "no such folder: /nowhere/model"),
        (("--max_seq_len", "500"), "--max_seq_len is 500, but"),
        (("--device", "cuda:77"), "--device cuda:77 cannot be used here"),
        (("--num_samples", "900"), "lower --num_samples or --gen_length"),
        (("--evaluations", "agreement"), "no --teacher is given"),
        (("--infilling_sampler", "multinomial"), "sampler 'multinomial' does not fit"),
    ],
)
def test_what_cannot_be_had_ends_with_its_reason(case, student, data, tmp_path, capsys):
    arguments, message = case
    code = evaluate("--model", student, *arguments, data=data, output_dir=tmp_path / "out")
    assert code == command.EXIT_FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_models_of_one_name_are_refused(student, data, tmp_path, capsys):
    models = ("--model", student, "--model", student)
    assert evaluate(*models, data=data, output_dir=tmp_path / "out") == command.EXIT_FAILED
    assert "--model NAME=PATH_OR_ID" in capsys.readouterr().err


def test_help_tells_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--model", "--teacher", "--samplers", "--scorer", "--trust_remote_code"):
        assert flag in shown
