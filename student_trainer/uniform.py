"""What a run with uniform noise cannot have."""

from masked_diffusion.families import DenoiserInfo
from student_trainer.config import Config


def check_noise(student: DenoiserInfo, config: Config) -> None:
    """Refuses settings that mean nothing with uniform noise.

    Raises:
        ValueError: a weighting by 1 / t, which belongs to masks; or a cross-entropy on the
            teacher's trajectories, whose states say nothing about the data's tokens.
    """
    if student.noise != "uniform":
        return
    if config.train.loss_weighting != "none":
        raise ValueError(
            f"train.loss_weighting is {config.train.loss_weighting!r}, but the student "
            f"{student.name!r} has uniform noise, whose bound is not weighted by 1 / t; set "
            "train.loss_weighting=none"
        )
    alpha = config.distill.distillation_alpha
    if config.distill.state_source == "trajectory" and alpha < 1:
        raise ValueError(
            f"distill.distillation_alpha is {alpha} with distill.state_source=trajectory, but with "
            "uniform noise every token of such a state may be the teacher's own, so the data's "
            "tokens are no labels; set distill.distillation_alpha=1 or distill.state_source=noised"
        )
