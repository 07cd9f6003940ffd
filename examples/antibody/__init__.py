"""Distils AntiBERTy, a published masked language model of antibodies, into one a tenth its size."""

import masked_diffusion  # noqa: F401  (before transformers: it quiets what that imports)
