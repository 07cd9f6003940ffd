"""An exponential moving average of the trained weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows every trained parameter; sharded as the parameters are."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        """Begins at the current weights.

        Args:
            decay: share of the average that stays at each step, in (0, 1).
        """
        self._decay = decay
        self._parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }
        """By parameter name; part of a checkpoint."""

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights, once an optimizer step."""
        for name, average in self.averages.items():
            average.mul_(self._decay).add_(self._parameters[name], alpha=1.0 - self._decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Puts the average into the module for the block, and the weights back after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in self.averages.items():
            parameter = self._parameters[name]
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
