"""The domain: masked-diffusion schedules, forward process, samplers, families and checkpoints."""
