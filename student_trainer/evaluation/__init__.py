"""Evaluation: what a denoiser is worth, measured on held-out text and on what it writes."""
