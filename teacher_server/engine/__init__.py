"""The engine: one thread that owns the denoiser and every live row."""
