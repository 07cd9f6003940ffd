"""Reading a configuration: the file, the overrides, what is refused, and the manual."""

import dataclasses
import re

import pytest
import yaml

from student_trainer.config import Config, DataConfig, DistillConfig, ModelConfig, TrainConfig
from student_trainer.config_file import ConfigError, load_config, manual, to_yaml

SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "distill": DistillConfig,
}
REQUIRED = ["--data.train_path=data", "--train.output_dir=out"]
ADDRESS = "--distill.teacher_address=127.0.0.1:1"
ORIGINAL_COMMAND_LINE = """
--data.train_path=./data --data.text_keys=text --data.max_seq_len=256
--train.output_dir=./out --train.micro_batch_size=2 --train.global_batch_size=16
--train.ckpt_manager=dcp --train.lr=1e-4 --train.max_steps=5 --train.num_train_epochs=2
--distill.teacher_model_path=./teacher --distill.distillation_alpha=0.7
--distill.temperature=4.0 --distill.num_sampling_steps=100
--distill.collect_every_n_steps=5 --distill.diffusion_sampling_alg=maskgit_plus
--distill.diffusion_temperature=0.9 --distill.diffusion_top_k=100
--distill.init_student_from_teacher=true --distill.freeze_teacher=true
--distill.use_stored_logits=false --distill.stored_logits_path=./logits
--distill.teacher_address=127.0.0.1:50051
"""
"""Every name of the original's documentation, and the one that is new, teacher_address."""


def load(*arguments: str) -> Config:
    return load_config([*REQUIRED, *arguments])


def write(folder, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(list(arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Values ------------------------------------------------------------------------------------------


def test_the_file_gives_values_and_later_overrides_win(tmp_path):
    path = write(
        tmp_path,
        """
        data: {train_path: a, max_seq_len: 128}
        train:
          output_dir: out
          lr: 1.0e-4
          max_steps: 7
        """,
    )
    config = load_config([path, "--train.lr=2e-4", "--data.train_path=b", "--train.lr=3e-4"])
    assert (config.data.train_path, config.data.max_seq_len) == ("b", 128)
    assert (config.train.lr, config.train.max_steps) == (3e-4, 7)


def test_what_is_left_out_has_its_default(tmp_path):
    path = write(tmp_path, "data: {train_path: data}\ntrain: {output_dir: out}\ndistill:\n")
    config = load_config([path])
    assert config == load()
    assert config.train == TrainConfig(output_dir="out")
    assert config.distill.distillation_alpha == 0.0


def test_an_empty_file_is_no_setting(tmp_path):
    assert load_config([write(tmp_path, "# nothing\n"), *REQUIRED]) == load()


def test_naming_a_teacher_is_asking_for_distillation():
    assert load(ADDRESS).distill.distillation_alpha == 0.5


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4"])
def test_numbers_are_read_in_every_form(text):
    assert load(f"--train.lr={text}").train.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "yes", "on", "1", "y", "t")),
        *((text, False) for text in ("false", "False", "no", "off", "0", "n", "f")),
    ],
)
def test_switches_are_read_in_every_form(text, value):
    config = load(f"--train.save_hf_weights={text}", f"--train.enable_mixed_precision={text}")
    assert config.train.save_hf_weights is value
    assert config.train.enable_mixed_precision is value


def test_a_bare_switch_is_on_and_a_value_may_stand_alone():
    config = load("--train.enable_mixed_precision", "--train.max_steps", "9")
    assert config.train.enable_mixed_precision
    assert config.train.max_steps == 9


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_unsets(text, tmp_path):
    path = write(tmp_path, "train: {max_steps: 5, global_batch_size: null}")
    config = load_config([path, *REQUIRED, f"--train.max_steps={text}"])
    assert config.train.max_steps is None
    assert config.train.global_batch_size is None


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("text", ["text"]),
        ("prompt,answer", ["prompt", "answer"]),
        ("prompt, answer", ["prompt", "answer"]),
        ("[prompt, answer]", ["prompt", "answer"]),
        ('["text"]', ["text"]),
    ],
)
def test_lists_are_read_in_every_form(text, keys, tmp_path):
    assert load(f"--data.text_keys={text}").data.text_keys == keys
    path = write(tmp_path, f"data: {{text_keys: {text if '[' in text else repr(text)}}}")
    assert load_config([path, *REQUIRED]).data.text_keys == keys


@pytest.mark.parametrize("text", ["0,5,11", "[0, 5, 11]"])
def test_lists_of_numbers_are_read_in_every_form(text):
    assert load(ADDRESS, f"--distill.student_layers={text}").distill.student_layers == [0, 5, 11]


def test_maps_keep_the_types_of_their_values():
    config = load(
        '--model.config_overrides={"num_hidden_layers": 4, "rms_norm_eps": 1.0e-5, '
        '"hidden_act": "silu", "use_cache": false}'
    )
    assert config.model.config_overrides == {
        "num_hidden_layers": 4,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "use_cache": False,
    }


@pytest.mark.parametrize(
    "text", ["2026-11-24", "2026", "1e3", "yes", "a: b", "[x", "@y", "runs/a=b", "12:30:00"]
)
def test_a_text_that_looks_like_something_else_stays_a_text(text):
    assert load(f"--train.output_dir={text}").train.output_dir == text
    assert load(f"--model.model_path={text}").model.model_path == text


def test_several_addresses_are_one_text():
    config = load("--distill.teacher_address=[::1]:50051,host-2:50051")
    assert config.distill.teacher_address == "[::1]:50051,host-2:50051"


def test_the_effective_configuration_reads_back_as_itself(tmp_path):
    for arguments in (
        [],
        [ADDRESS, "--train.lr=1e-5", "--data.text_keys=prompt,answer", "--train.max_steps=3"],
        [ADDRESS, '--model.config_overrides={"num_hidden_layers": 4}', "--distill.divergence=jsd"],
        ["--train.output_dir=2026-11-24", "--model.model_path=1e3"],
    ):
        config = load(*arguments)
        assert load_config([write(tmp_path, to_yaml(config))]) == config
        assert list(yaml.safe_load(to_yaml(config))) == list(SECTIONS)


def test_every_original_name_is_accepted():
    config = load_config(ORIGINAL_COMMAND_LINE.split())
    assert config.distill == DistillConfig(
        teacher_model_path="./teacher",
        distillation_alpha=0.7,
        temperature=4.0,
        num_sampling_steps=100,
        collect_every_n_steps=5,
        diffusion_sampling_alg="maskgit_plus",
        diffusion_temperature=0.9,
        diffusion_top_k=100,
        init_student_from_teacher=True,
        stored_logits_path="./logits",
        teacher_address="127.0.0.1:50051",
    )
    assert (config.train.global_batch_size, config.train.num_train_epochs) == (16, 2.0)


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("train.learning_rate", "train.lr_min"),
        ("train.micro_batchsize", "train.micro_batch_size"),
        ("distill.temprature", "distill.temperature"),
        ("distil.temperature", "distill.temperature"),
        ("train.train_path", "data.train_path"),
        ("data.output_dir", "train.output_dir"),
        ("max_seq_len", "data.max_seq_len"),
        ("train", "train.lr"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    found = refusal(*REQUIRED, f"--{name}=1")
    assert found.startswith(f"unknown setting {name!r}; did you mean '")
    if name != "train.learning_rate":
        assert found.endswith(f"{nearest!r}?")


def test_an_unknown_name_in_the_file_is_refused_too(tmp_path):
    path = write(tmp_path, "data: {train_path: x, txt_keys: [a]}")
    assert refusal(path) == "unknown setting 'data.txt_keys'; did you mean 'data.text_keys'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta: {train_path: x}", "unknown section 'dta'; did you mean 'data'?"),
        ("dta:", "unknown section 'dta'; did you mean 'data'?"),
        ("1: {a: b}", "unknown section 1; did you mean"),
        ("data: x", "section data must hold fields, got 'x'"),
        ("[1, 2]", "must hold the sections model, data, train, distill, got [1, 2]"),
        ("a: [b", "is not YAML: while parsing a flow sequence"),
        ("a: \t- b", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    found = refusal(path)
    assert path in found and message in found


def test_a_file_of_bytes_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not YAML" in refusal(str(tmp_path / "run.yaml"))


def test_a_missing_file_is_refused(tmp_path):
    assert "no configuration file" in refusal(str(tmp_path / "missing.yaml"))
    assert "no configuration file" in refusal(str(tmp_path))


def test_a_second_file_is_refused(tmp_path):
    path = write(tmp_path, "data: {train_path: x}")
    assert f"unexpected argument {path!r}" in refusal(*REQUIRED, "--train.max_steps=3", path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--train.max_steps=many", "train.max_steps: Input should be a valid integer"),
        ("--train.max_steps=2.5", "train.max_steps: Input should be a valid integer"),
        ("--train.lr=fast", "train.lr: Input should be a valid number"),
        ("--train.lr=null", "train.lr: Input should be a valid number"),
        ("--train.save_hf_weights=2", "train.save_hf_weights: Input should be a valid boolean"),
        (
            "--train.lr_decay_style=step",
            "should be 'cosine', 'linear', 'constant' or 'wsd', got 'step'",
        ),
        ("--distill.student_layers=5,0", "must be rising layers of the teacher, counted from 0"),
        ("--distill.student_layers=-1,0", "must be rising layers of the teacher"),
        ("--data.text_keys=3", "data.text_keys: Input should be a valid list, got 3"),
        (
            "--model.config_overrides=4",
            "model.config_overrides: Input should be a valid dictionary",
        ),
        (
            "--distill.diffusion_sampling_alg=magic",
            "'entropy_bounded', 'ancestral' or 'multinomial', got 'magic'",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(argument, message):
    found = refusal(*REQUIRED, ADDRESS, argument)
    assert message in found
    assert argument[2:].partition("=")[0] in found


def test_the_sections_own_checks_speak_for_themselves():
    assert refusal(*REQUIRED, ADDRESS, "--distill.temperature=0") == (
        "distill.temperature must be > 0 and finite, got 0.0"
    )
    assert refusal("--train.output_dir=out") == "data.train_path must be given, got ''"


def test_stored_targets_without_their_folder_are_refused():
    found = refusal(*REQUIRED, ADDRESS, "--distill.use_stored_logits=true")
    assert "distill.stored_logits_path must be a folder or URL" in found
    assert "got None" in found


# The manual --------------------------------------------------------------------------------------


def test_every_field_has_its_manual():
    text = manual()
    for section, config_class in SECTIONS.items():
        assert f"{section}: {config_class.__doc__}" in text
        for field in dataclasses.fields(config_class):
            (entry,) = re.findall(
                rf"  --{section}\.{field.name} \(.*default .*\)\n((?:      .+\n?)+)", text
            )
            assert len(entry.split()) >= 3, field.name


def test_defaults_are_those_of_the_fields():
    text = manual()
    assert "--train.lr (float, default 0.0003)" in text
    assert "--train.max_steps (int | None, default None)" in text
    assert "--data.text_keys (list[str], default ['text'])" in text
    assert "--train.lr_decay_style (Literal['cosine', 'linear', 'constant', 'wsd'], default" in text
    assert "default required" not in text
