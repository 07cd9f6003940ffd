"""The device that an evaluation runs on."""

import torch


def find_device(name: str) -> torch.device:
    """Finds the device of `--device`; auto is a GPU where there is one.

    Raises:
        ValueError: torch cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}; try cpu") from error
