"""What a sampler may look at when it draws the tokens of a step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class DecidedPositions:
    """What is known of the M positions of a step that are decided, in row-major order."""

    uniforms_M: Tensor
    """[M] float64 in (0, 1), stream "token"."""
    token_ids_M: Tensor
    """[M] int64, the tokens there now."""
    step_M: Tensor
    """[M] int64."""
    num_steps_M: Tensor
    """[M] int64."""

    @property
    def is_last(self) -> Tensor:
        """[M] bool, where the step is the trajectory's last."""
        return self.step_M == self.num_steps_M - 1

    def __getitem__(self, part: slice) -> "DecidedPositions":
        return DecidedPositions(
            uniforms_M=self.uniforms_M[part],
            token_ids_M=self.token_ids_M[part],
            step_M=self.step_M[part],
            num_steps_M=self.num_steps_M[part],
        )
