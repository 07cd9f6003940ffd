"""The command line of `distill precompute`: the original flags, and what they set."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from student_trainer import config_file
from student_trainer.config import Config
from student_trainer.store.index import WorkShare
from student_trainer.store.writer import SHARD_AGE_S, SHARD_BYTES

_EPILOG = """Without --run_config, every sequence of the data is stored once (or --num_passes),
for a training run that draws from them in any order. With it, exactly the states of that run are
stored, so that it can be trained from the store with the numbers of a live run. Any other setting
of a training run may follow as --section.field=value."""

FLAGS: Mapping[str, tuple[str, str]] = {
    "teacher_model_path": ("distill.teacher_model_path", "teacher checkpoint, folder or hub id"),
    "teacher_address": ("distill.teacher_address", "HOST:PORT of running teachers, with commas"),
    "data_path": ("data.train_path", "files or folders, with commas"),
    "text_keys": ("data.text_keys", "keys of a row's text"),
    "tokenizer_path": ("model.config_path", "folder with config and tokenizer; else the teacher's"),
    "max_seq_len": ("data.max_seq_len", "tokens of a sequence"),
    "batch_size": ("train.micro_batch_size", "sequences of one request"),
    "seed": ("train.seed", "keys every draw"),
    "state_source": ("distill.state_source", "trajectory or noised"),
    "num_sampling_steps": ("distill.num_sampling_steps", "sampling steps of the teacher"),
    "collect_every_n_steps": ("distill.collect_every_n_steps", "steps i with i % n == 0 are kept"),
    "diffusion_alg": ("distill.diffusion_sampling_alg", "rule by which tokens are unmasked"),
    "diffusion_temperature": ("distill.diffusion_temperature", "temperature of the token draw"),
    "diffusion_top_k": ("distill.diffusion_top_k", "ids kept for the token draw"),
    "encoding": ("distill.encoding", "hidden, top_k or logits"),
    "top_k": ("distill.top_k", "ids kept a position with top_k"),
    "temperature": ("distill.temperature", "distillation temperature that top_k is for"),
}
"""Each flag with the setting of a training run that it is, and its explanation."""

_DATASET_DEFAULTS: Mapping[str, object] = {
    "distill.state_source": "trajectory",
    "distill.states_per_trajectory": 0,
    "train.micro_batch_size": 4,
    "data.max_seq_len": 2048,
}
"""Those of the original script; all collected states of a trajectory are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeOptions:
    """What is computed, and where it goes."""

    config: Config
    output_path: str
    share: WorkShare
    is_run: bool
    """Whether the states of a training run are stored, and not a data set."""
    max_examples: int | None
    """Sequences of the data at most."""
    num_passes: int
    """States a sequence with state_source=noised."""
    max_shard_bytes: int
    max_shard_age_s: float
    teacher_config_path: str | None = None
    """Where the local teacher's config.json is, if not beside its weights."""
    device: str | None = None
    """Of the local teacher; None = as the server chooses."""


def parse(arguments: Sequence[str]) -> PrecomputeOptions:
    """Reads the command line; ends the program where it is misused.

    Raises:
        ConfigError: a setting is unknown or has a value that is not allowed.
    """
    options, rest = _parser().parse_known_args(arguments)
    is_run = options.run_config is not None
    settings: dict[str, object] = {}
    if not is_run:
        settings |= {**_DATASET_DEFAULTS, "train.output_dir": options.output_path}
    given = {flag: value for flag in FLAGS if (value := getattr(options, flag)) is not None}
    settings |= {FLAGS[flag][0]: value for flag, value in given.items()}
    settings["distill.init_student_from_teacher"] = "false"
    command = [options.run_config] if is_run else []
    command += [f"--{name}={value}" for name, value in settings.items()]
    config = config_file.load_config([*command, *rest])
    if not config.uses_teacher:
        raise config_file.ConfigError("distill.distillation_alpha is 0: no teacher would be asked")
    if not (config.distill.teacher_address or config.distill.teacher_model_path):
        raise config_file.ConfigError("give --teacher_model_path or --teacher_address")
    for name in ("max_examples", "num_passes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise config_file.ConfigError(f"--{name} must be at least 1, got {value}")
    if is_run and (options.max_examples is not None or options.num_passes != 1):
        raise config_file.ConfigError(
            "--max_examples and --num_passes are for a data set; a run says itself what it takes "
            "(train.max_steps)"
        )
    if config.data.streaming:
        raise config_file.ConfigError(
            "data.streaming is true, but sequences are stored by the data's index; set it to false"
        )
    if config.distill.teacher_address and (options.device or options.teacher_config_path):
        raise config_file.ConfigError(
            "--device and --teacher_config_path are for a teacher that is started here; a running "
            "one (--teacher_address) was given its own"
        )
    if options.num_passes > 1 and config.distill.state_source == "trajectory":
        raise config_file.ConfigError("--num_passes is for --state_source noised")
    return PrecomputeOptions(
        config=config,
        output_path=options.output_path,
        share=_share(options.shard),
        is_run=is_run,
        max_examples=options.max_examples,
        num_passes=options.num_passes,
        max_shard_bytes=int(options.max_shard_mib * 2**20),
        max_shard_age_s=options.max_shard_age_s,
        teacher_config_path=options.teacher_config_path,
        device=options.device,
    )


def _share(text: str) -> WorkShare:
    try:
        return WorkShare.parse(text)
    except ValueError as error:
        raise config_file.ConfigError(f"--shard: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distill precompute",
        description="Asks a teacher once and stores its targets.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--output_path", required=True, help="folder or fsspec URL of the store")
    for flag, (name, explanation) in FLAGS.items():
        parser.add_argument(f"--{flag}", help=f"{explanation} ({name})")
    parser.add_argument(
        "--teacher_config_path", help="folder with the local teacher's config.json; else its own"
    )
    parser.add_argument("--device", help="device of the local teacher: cpu, cuda, cuda:1, ...")
    parser.add_argument("--max_examples", type=int, help="sequences of the data at most")
    parser.add_argument("--num_passes", type=int, default=1, help="noised states a sequence")
    parser.add_argument("--run_config", metavar="YAML", help="store the states of this run")
    parser.add_argument(
        "--shard", default="0/1", metavar="i/n", help="this worker's share, i from 0"
    )
    parser.add_argument(
        "--max_shard_mib",
        type=float,
        default=SHARD_BYTES / 2**20,
        help="a shard is published when it is so large (default %(default)s)",
    )
    parser.add_argument(
        "--max_shard_age_s",
        type=float,
        default=SHARD_AGE_S,
        help="or so old (default %(default)s)",
    )
    return parser
