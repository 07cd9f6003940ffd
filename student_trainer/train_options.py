"""Parts of `--train.*` that belong to one module each; `TrainConfig` is built on them.

Without slots, since a class with slots can be built on one other at most.
"""

from dataclasses import dataclass, field
from typing import Literal

from student_trainer.config_checks import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class ShardingOptions:
    """How the student lies over the ranks, and what is done to its blocks."""

    data_parallel_mode: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every rank holds the whole student. fsdp: each holds a share of every matrix (FSDP2,
    a block at a time). hsdp: shares within a group of ranks, replicas of the group."""
    data_parallel_replicate_size: int = 1
    """hsdp: replicas of the student, which divides the number of ranks."""
    enable_gradient_checkpointing: bool = False
    """Keep only the inputs of a block and compute the rest again in the backward."""
    enable_compile: bool = False
    """Compile the blocks with torch.compile; the first steps take longer."""
    enable_fsdp_offload: bool = False
    """fsdp, hsdp: keep parameters, gradients and optimizer states in host memory."""
    enable_full_determinism: bool = False
    """Use deterministic kernels alone, and have a teacher that is started here run
    deterministically, so that a resumed run repeats every number; slower."""

    def __post_init__(self) -> None:
        require_at_least(1, "train", self, "data_parallel_replicate_size")
        require(
            self.data_parallel_replicate_size == 1 or self.data_parallel_mode == "hsdp",
            "train.data_parallel_replicate_size",
            self.data_parallel_replicate_size,
            f"1 with train.data_parallel_mode={self.data_parallel_mode}",
        )
        require(
            not self.enable_fsdp_offload or self.data_parallel_mode != "ddp",
            "train.enable_fsdp_offload",
            self.enable_fsdp_offload,
            "false with train.data_parallel_mode=ddp",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What a run leaves to go on from."""

    ckpt_manager: Literal["dcp", "none"] = "dcp"
    """dcp writes torch distributed checkpoints every save_steps, and on SIGTERM, and reads
    load_checkpoint_path; none does neither."""
    save_steps: int = 0
    """Steps between checkpoints, the last step's among them; 0 = only on SIGTERM."""
    load_checkpoint_path: str | None = None
    """Checkpoint folder to go on from, output_dir/checkpoints/step-N of an earlier run; auto = the
    newest one of this output_dir, or a fresh start where there is none."""
    keep_last_checkpoints: int = 0
    """Newest checkpoints that are kept, older ones are removed once a newer one is whole; 0 = all
    of them."""
    enable_async_save: bool = True
    """Write checkpoints on a thread beside the training, from a copy in host memory."""

    def __post_init__(self) -> None:
        require_at_least(0, "train", self, "save_steps", "keep_last_checkpoints")
        if self.ckpt_manager == "none":
            for name in ("save_steps", "load_checkpoint_path"):
                value = getattr(self, name)
                require(not value, f"train.{name}", value, "unset with train.ckpt_manager=none")


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """Which parameters move, by which rule, and what is averaged over them."""

    optimizer: Literal["adamw", "adafactor", "muon", "adamw_8bit"] = "adamw"
    """adamw (fused); adafactor; muon for the blocks' matrices and adamw for everything else;
    adamw_8bit (needs bitsandbytes and a GPU)."""
    ema_decay: float = 0.0
    """Decay a step of an exponential moving average of the trained weights; 0 = none is kept."""
    export_weights: Literal["student", "ema"] = "student"
    """Which weights output_dir/hf_ckpt gets: the last ones or their moving average."""
    lora_rank: int = 0
    """Rank of low-rank adapters (LoRA, needs peft), which alone are trained; 0 = all weights are.
    The exported student has them merged in."""
    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout on the adapters' inputs."""
    lora_target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers that get an adapter, separated by commas; all-linear = all within
    the blocks."""

    def __post_init__(self) -> None:
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "in [0, 1)")
        require(
            self.export_weights == "student" or self.ema_decay > 0,
            "train.export_weights",
            self.export_weights,
            "student where train.ema_decay is 0",
        )
        require_at_least(0, "train", self, "lora_rank")
        require(self.lora_alpha > 0, "train.lora_alpha", self.lora_alpha, "> 0")
        require(0 <= self.lora_dropout < 1, "train.lora_dropout", self.lora_dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """Where metrics go beside metrics.jsonl."""

    use_tensorboard: bool = True
    """Write event files to output_dir/tensorboard."""
    use_wandb: bool = False
    """Send metrics to Weights & Biases (needs wandb)."""
    wandb_project: str = "dllm-distill"
    """Project of the W&B run."""
    wandb_name: str | None = None
    """Name of the W&B run; None = W&B's choice."""
