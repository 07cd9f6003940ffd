"""Serves the distributions of a masked-diffusion teacher over gRPC."""
