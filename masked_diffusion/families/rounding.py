"""How far the same forward in another shape may stray, by number format."""

import torch

ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative to the largest value. Some tens of the format's spacing, since rounding adds up over the
layers; a position that is wrongly seen changes far more."""
