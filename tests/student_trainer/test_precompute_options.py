"""The command line of a precompute: what its flags set, and what it refuses."""

import pytest

from student_trainer import precompute
from student_trainer.precompute_options import parse

REQUIRED = ["--teacher_model_path", "t", "--data_path", "d", "--output_path", "o"]


def test_without_more_it_has_the_defaults_of_the_original():
    options = parse(REQUIRED)
    config = options.config
    assert config.distill.num_sampling_steps == 200
    assert config.distill.collect_every_n_steps == 10
    assert config.distill.diffusion_sampling_alg == "p2"
    assert (config.distill.diffusion_temperature, config.distill.diffusion_top_k) == (0.7, 200)
    assert (config.train.micro_batch_size, config.data.max_seq_len) == (4, 2048)
    assert options.max_examples is None and not options.is_run


def test_every_flag_of_the_original_is_read():
    options = parse(
        [
            *REQUIRED,
            *("--teacher_config_path", "c", "--tokenizer_path", "k", "--device", "cpu"),
            *("--num_sampling_steps", "7", "--collect_every_n_steps", "3", "--batch_size", "5"),
            *("--max_seq_len", "99", "--max_examples", "11", "--diffusion_alg", "entropy"),
            *("--diffusion_temperature", "0.5", "--diffusion_top_k", "9"),
        ]
    )
    config = options.config
    assert config.distill.teacher_model_path == "t"
    assert (config.data.train_path, options.output_path) == ("d", "o")
    assert (options.teacher_config_path, config.model.config_path) == ("c", "k")
    assert (options.device, options.max_examples) == ("cpu", 11)
    assert config.distill.num_sampling_steps == 7
    assert config.distill.collect_every_n_steps == 3
    assert config.distill.diffusion_sampling_alg == "entropy"
    assert (config.distill.diffusion_temperature, config.distill.diffusion_top_k) == (0.5, 9)
    assert (config.train.micro_batch_size, config.data.max_seq_len) == (5, 99)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max_examples=0"], "--max_examples must be at least 1, got 0"),
        (["--shard=2/2"], "shard 2/2 is none of the shards 0 to 1"),
        (["--shard=one"], "shard must be i/n"),
        (["--num_pases=2"], "num_pases"),
        (
            ["--state_source=noised", "--data.streaming=true", "--train.max_steps=1"],
            "sequences are stored by the data's index",
        ),
        (["--num_passes=2"], "--num_passes is for --state_source noised"),
        (["--teacher_address=a:1", "--device=cpu"], "for a teacher that is started here"),
        (
            ["--state_source=noised", "--distill.distillation_alpha=0"],
            "no teacher would be asked",
        ),
    ],
)
def test_misuse_is_told_in_one_line(capsys, arguments, words):
    assert precompute.main([*REQUIRED, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("distill precompute: ") and words in message
    assert message.count("\n") == 1
