"""The sampler of trajectories, as the configuration names it and as the teacher is asked."""

from collections.abc import Mapping
from dataclasses import asdict

from student_trainer.config import DistillConfig
from student_trainer.store.errors import StoreMismatchError
from student_trainer.store.target_store import TargetStore
from student_trainer.wire import SamplerSpec

SETTINGS: Mapping[str, str] = {
    "algorithm": "diffusion_sampling_alg",
    "num_steps": "num_sampling_steps",
    "temperature": "diffusion_temperature",
    "top_k": "diffusion_top_k",
    "alg_temp": "diffusion_alg_temp",
    "suppress_mask_token": "diffusion_suppress_mask_token",
    "block_length": "diffusion_block_length",
    "guidance_scale": "diffusion_guidance_scale",
    "threshold": "diffusion_threshold",
    "entropy_bound": "diffusion_entropy_bound",
}
"""Fields of a `SamplerSpec` with the settings of `distill` that they are; others have none."""


def sampler_spec(distill: DistillConfig) -> SamplerSpec:
    """What the teacher samples by."""
    return SamplerSpec(**{name: getattr(distill, setting) for name, setting in SETTINGS.items()})


def check_sampler(distill: DistillConfig, store: TargetStore) -> None:
    """Refuses a store whose trajectories were sampled otherwise than a live run's would be.

    Raises:
        StoreMismatchError: naming the first setting that differs.
    """
    sampler = store.identity.sampler
    if distill.state_source != "trajectory" or sampler is None:
        return
    ours = asdict(sampler_spec(distill))
    for name, found in asdict(sampler).items():
        if found != ours[name]:
            setting = f"distill.{SETTINGS[name]}" if name in SETTINGS else f"the sampler's {name}"
            mend = f"set --{setting}={found}" if name in SETTINGS else "train from another store"
            raise StoreMismatchError(
                f"the store {store.reader.url} holds trajectories with {setting} = {found!r}, this "
                f"run has {ours[name]!r}; {mend}, or precompute for this run"
            )
