"""What a run that goes on must share with its checkpoint, and what it may change."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from student_trainer.config import Config

Value = int | float | str | bool | list[Any] | None
"""What a fact may be: JSON keeps each as it is."""
Facts = Mapping[str, Value]

DIGEST = "config_digest"

_Fields = Mapping[str, tuple[str, ...]]

# What is drawn and how it is weighed, and which numbers an optimizer's state belongs to. Learning
# rate, length, batches, packing, addresses, paths and number formats may change: they are told.
_FIXED: _Fields = {
    "data": (
        *("text_keys", "prompt_keys", "answer_keys", "messages_key"),
        *("max_seq_len", "min_chunk_tokens", "streaming"),
    ),
    "train": (
        *("seed", "t_min", "t_max", "loss_weighting", "loss_normalizer"),
        *("optimizer", "ema_decay", "lora_rank"),
    ),
    "distill": ("distillation_alpha",),
}
_FIXED_WITH_ADAPTERS: _Fields = {"train": ("lora_alpha", "lora_target_modules")}
_FIXED_WITH_TEACHER: _Fields = {"distill": ("temperature", "divergence", "jsd_beta")}
_FIXED_WITH_STATES: _Fields = {"distill": ("state_source",)}
_FIXED_WITH_TRAJECTORIES: _Fields = {
    "distill": (
        *("num_sampling_steps", "collect_every_n_steps", "states_per_trajectory"),
        *("prompt_fraction", "diffusion_sampling_alg", "diffusion_temperature", "diffusion_top_k"),
        *("diffusion_alg_temp", "diffusion_suppress_mask_token", "diffusion_block_length"),
        *("diffusion_guidance_scale", "diffusion_threshold", "diffusion_entropy_bound"),
    )
}
# Steps of trajectories are drawn for a micro-batch.
_FIXED_WITH_DRAWN_STEPS: _Fields = {"train": ("micro_batch_size",)}


def config_facts(config: Config) -> dict[str, Value]:
    """The fields, by their dotted names, that must be equal at a resume, and their digest."""
    sections = [_FIXED]
    if config.train.lora_rank:
        sections.append(_FIXED_WITH_ADAPTERS)
    if config.uses_teacher:
        sections.append(_FIXED_WITH_TEACHER)
        # What a store holds is known when it is open, see store_facts.py.
        if not config.distill.use_stored_logits:
            sections += _state_sections(config)
    facts = _values(config, sections)
    text = json.dumps(facts, sort_keys=True)
    return facts | {DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def state_facts(config: Config) -> dict[str, Value]:
    """The fields that decide the states of a run with a teacher, by their dotted names."""
    return _values(config, _state_sections(config))


def _state_sections(config: Config) -> list[_Fields]:
    sections = [_FIXED_WITH_STATES]
    if config.distill.state_source == "trajectory":
        sections.append(_FIXED_WITH_TRAJECTORIES)
        if config.distill.states_per_trajectory:
            sections.append(_FIXED_WITH_DRAWN_STEPS)
    return sections


def _values(config: Config, sections: Sequence[_Fields]) -> dict[str, Value]:
    return {
        f"{section}.{name}": getattr(getattr(config, section), name)
        for fields in sections
        for section, names in fields.items()
        for name in names
    }


def differences(saved: Facts, now: Facts) -> list[str]:
    """What is said of each fact that both know and that is not the same."""
    return [
        f"{name} was {saved[name]} and is {now[name]} now"
        for name in now
        # The digest names no field, and covers fields that one side may not have.
        if name != DIGEST and name in saved and saved[name] != now[name]
    ]


def config_changes(saved_text: str, text: str) -> list[str]:
    """Every setting that differs between two configurations as YAML, `name: old -> new`."""
    saved, now = (_flat(yaml.safe_load(one) or {}) for one in (saved_text, text))
    return [
        f"{name}: {saved[name]} -> {now[name]}"
        for name in now
        if name in saved and saved[name] != now[name]
    ]


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, fields in sections.items()
        for name, value in fields.items()
    }
