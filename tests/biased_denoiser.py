"""A real denoiser whose head has a bias, so that a test can have it favour an id."""

from torch import Tensor, nn

from masked_diffusion.families import Denoiser
from masked_diffusion.families.qwen2 import Qwen2


class BiasedDenoiser(Qwen2):
    """Computes what it was made from computes, and adds a bias to its logits."""

    def __init__(self, denoiser: Denoiser, bias_V: Tensor) -> None:
        super().__init__(
            denoiser.model,
            denoiser.tokenizer,
            name=denoiser.info.name,
            mask_token_id=denoiser.info.mask_token_id,
        )
        self.bias_V = nn.Parameter(bias_V)
        self.eval().requires_grad_(False)

    @property
    def head_bias(self) -> Tensor:
        return self.bias_V


def favouring_the_mask(denoiser: Denoiser, bias: float) -> BiasedDenoiser:
    """Raises the logit of the mask id alone."""
    bias_V = denoiser.head_weight.new_zeros(denoiser.info.padded_vocab_size)
    bias_V[denoiser.info.mask_token_id] = bias
    return BiasedDenoiser(denoiser, bias_V)
