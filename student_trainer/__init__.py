"""Trains a small student denoiser from a teacher that runs somewhere else."""
