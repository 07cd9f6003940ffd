"""How a denoiser answers a task's questions: what it is, how it generates, how it scores."""

from dataclasses import dataclass

from masked_diffusion.families.info import Alignment


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which checkpoint, and how it is loaded; the arguments of `checkpoints.load_denoiser`."""

    model: str
    """Path of a folder, or hub id."""
    device: str | None = None
    """Where to; None is a GPU if there is one."""
    dtype: str | None = None
    """Name of a torch dtype, as bfloat16; None keeps what was saved."""
    trust_remote_code: bool = False
    """Run code that the checkpoint brings."""
    self_test: bool = True
    """Prove attention, padding and alignment before anything else."""
    mask_token_id: int | None = None
    alignment: Alignment | None = None
    denoiser_block_length: int | None = None
    """Positions of a block, for block diffusion."""
    adapters: tuple[str, ...] = ()
    """Folders or hub ids of peft adapters, merged in this order."""
    quantization: str | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How text is generated. What is None comes from the task, and else is as said."""

    max_new_tokens: int | None = None
    """Masks that are put after a prompt; else 256."""
    num_steps: int | None = None
    """Denoising steps; else one for every new token."""
    algorithm: str | None = None
    """Sampler; else low_confidence, or multinomial for a denoiser of uniform noise."""
    temperature: float | None = None
    """Else 0, which takes the most likely token."""
    top_p: float | None = None
    top_k: int | None = None
    alg_temp: float = 0.0
    block_length: int = 0
    guidance_scale: float = 0.0
    threshold: float = 0.0
    entropy_bound: float = 0.0
    suppress_mask_token: bool = True
    seed: int = 0
    """Of all draws; each request's are keyed by what it asks, not by the batch it shares."""
    batch_size: int = 8
    """Sequences that are sampled together."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How the likelihood of a text is bounded."""

    num_masks: int = 128
    """Masked states for each text. A text that has no more than that in all is computed exactly:
    all masks of up to 7 tokens, with 128."""
    check_greedy: bool = True
    """Find out, by sampling, whether the text is what the denoiser would write: lambada and a few
    others count that. False answers no, and saves one forward for each token."""
    seed: int = 0
    """Of the masks."""
    batch_size: int = 32
    """Masked states in a forward."""

    def __post_init__(self) -> None:
        for name in ("num_masks", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
