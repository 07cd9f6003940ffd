"""Classifier-free guidance: what the prompt changes, made stronger."""

from torch import Tensor


def unconditional_states(x_BL: Tensor, given_BL: Tensor, *, mask_token_id: int) -> Tensor:
    """Masks what is given, so that the denoiser sees what was generated alone.

    Args:
        x_BL: Ids, of any shape.
        given_BL: bool of the same shape: frozen positions, padding left out.
    """
    return x_BL.masked_fill(given_BL, mask_token_id)


def guided_hidden_states(
    conditional: Tensor, unconditional: Tensor, *, guidance_scale: float | Tensor
) -> Tensor:
    """Makes u + (w + 1)(h - u) of the hidden states h, and u of the unconditional states.

    The head is affine, so these hidden states have the logits l_u + (w + 1)(l_h - l_u), which is
    how guidance is defined: exactly, but for the rounding to the denoiser's dtype.

    Args:
        conditional: [..., D] h, after the last norm.
        unconditional: [..., D] u.
        guidance_scale: w, one or as broadcast to the hidden states; 0 would give h.

    Returns:
        [..., D] in the dtype of h, computed in float32.

    Source: Nie et al., arXiv:2410.18514 (unsupervised guidance); LLaDA, `generate`, cfg_scale.
    """
    h, u = conditional.float(), unconditional.float()
    return (u + (guidance_scale + 1) * (h - u)).to(conditional.dtype)
