"""Configuration of a training run; the text under a field is its manual.

A run reads one YAML file and dotted overrides, `--train.lr=1e-4`; the names are those of the
original distillation scripts of Open-dLLM where those had one.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from masked_diffusion.samplers.config import Algorithm, SamplerConfig
from student_trainer.config_checks import require as _require
from student_trainer.config_checks import require_at_least as _require_at_least
from student_trainer.losses import LossConfig
from student_trainer.row_keys import HubSelection, RowKeys
from student_trainer.train_options import (
    CheckpointOptions,
    ShardingOptions,
    TrackerOptions,
    UpdateOptions,
)

Scalar = int | float | bool | str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Where the student comes from."""

    model_path: str | None = None
    """Folder or hub id of a checkpoint that the student starts from, weights and all."""
    config_path: str | None = None
    """Folder, hub id or JSON file of the configuration of a new student; its weights are random
    unless distill.init_student_from_teacher is true."""
    config_overrides: dict[str, Scalar] = field(default_factory=dict)
    """Fields to change in that configuration (or the teacher's), such as
    {"num_hidden_layers": 4}. Refused with model_path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is read."""

    train_path: str = ""
    """Files, folders, globs, folders of `datasets`' save_to_disk, and hub ids NAMESPACE/NAME,
    separated by commas. .jsonl, .json, .parquet and .arrow files hold rows; .txt, .py and other
    text and code are one document a file; .gz, .zst and .bz2 are unpacked. Others are refused."""
    subset: str | None = None
    """Configuration of a hub's dataset; None = the only one."""
    split: str = "train"
    """Split of a hub's or a saved dataset, or a slice of a hub's, such as train[:1%]."""
    revision: str | None = None
    """Branch, tag or commit of a hub's dataset; None = the newest."""
    text_keys: list[str] = field(default_factory=lambda: ["text"])
    """Keys of a row's text, separated by commas: one, or two of which the first present is taken;
    exactly prompt,answer reads both, and the prompt is never masked."""
    prompt_keys: list[str] = field(default_factory=list)
    """Keys of the parts of a prompt, such as instruction,input, joined by an empty line; with
    answer_keys, instead of text_keys. The prompt is never masked."""
    answer_keys: list[str] = field(default_factory=list)
    """Keys of the answer, of which the first present is taken."""
    messages_key: str = ""
    """Key of a conversation, a list of {role, content}, such as messages: the tokenizer's chat
    template writes it, and each answer of the assistant is learned given what came before."""
    max_seq_len: int = 512
    """Tokens of a sequence; longer documents are cut into several, too long prompts lose their
    beginning."""
    min_chunk_tokens: int = 16
    """A document's last piece is dropped when it has fewer tokens; an answer never is."""
    packing: bool = False
    """The student runs on rows of up to max_seq_len tokens that hold several sequences of the
    micro-batch, none of which sees another; false = a padded row each. Changes no batch, target or
    loss."""
    streaming: bool = False
    """Read while training and keep nothing but a shuffle buffer, instead of tokenizing everything
    first; needs train.max_steps, since the size is not known."""
    shuffle_buffer_size: int = 4096
    """streaming: rows that are read and shuffled together."""
    num_workers: int = 0
    """Processes of each rank that read and tokenize; 0 = the rank itself. Changes no batch."""
    cache_dir: str | None = None
    """Folder for tokenized data; None = output_dir/data_cache."""

    def __post_init__(self) -> None:
        _require(bool(self.train_path), "data.train_path", self.train_path, "given")
        _require(len(self.text_keys) in (1, 2), "data.text_keys", self.text_keys, "one or two keys")
        _require(
            1 <= self.min_chunk_tokens < self.max_seq_len,
            "data.min_chunk_tokens",
            self.min_chunk_tokens,
            f">= 1 and below data.max_seq_len ({self.max_seq_len})",
        )
        _require_at_least(1, "data", self, "shuffle_buffer_size")
        _require_at_least(0, "data", self, "num_workers")
        self.keys  # noqa: B018  checks itself

    @property
    def keys(self) -> RowKeys:
        """Where in a row its texts are."""
        return RowKeys(
            text=tuple(self.text_keys),
            prompt=tuple(self.prompt_keys),
            answer=tuple(self.answer_keys),
            messages=self.messages_key,
        )

    @property
    def selection(self) -> HubSelection:
        """Which part of a dataset is read."""
        return HubSelection(subset=self.subset, split=self.split, revision=self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(ShardingOptions, CheckpointOptions, UpdateOptions, TrackerOptions):
    """How the student is trained."""

    output_dir: str = ""
    """Folder for metrics, checkpoints and the exported student."""
    micro_batch_size: int = 8
    """Sequences of one forward on one rank."""
    global_batch_size: int | None = None
    """Sequences of one optimizer step over all ranks; a multiple of micro_batch_size times the
    number of ranks. None = exactly that."""
    max_steps: int | None = None
    """Optimizer steps; None = num_train_epochs over the data."""
    num_train_epochs: float = 1.0
    """Passes over the data, where max_steps is not given."""
    lr: float = 3e-4
    """Peak learning rate."""
    lr_min: float = 0.0
    """Learning rate at the end of the decay."""
    lr_warmup_ratio: float = 0.02
    """Share of the steps in which the rate rises from 0."""
    lr_decay_style: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How it falls afterwards; wsd (warm-up, stable, decay) stays and falls linearly at the end."""
    lr_decay_ratio: float = 0.2
    """wsd: share of the steps in which it falls."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; norms and biases have none."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 = never."""
    loss_weighting: Literal["none", "inv_t", "path"] = "inv_t"
    """Weight of a position masked at time t, for both terms: 1, 1 / t, or Open-dLLM's (1 + p) / t
    with p the student's probability of the true token."""
    loss_normalizer: Literal["masked_tokens", "all_tokens", "sequence"] = "all_tokens"
    """What the sum over positions is divided by, globally over ranks and accumulation steps."""
    t_min: float = 0.002
    """Smallest mask probability t drawn."""
    t_max: float = 0.998
    """Largest mask probability t drawn."""
    enable_mixed_precision: bool = False
    """Compute in bfloat16 over float32 weights (torch.autocast); the head's product, which the
    loss is most sensitive to, stays in float32."""
    seed: int = 42
    """Keys the initial weights, the order of the data, every mask and the teacher's draws."""
    log_every_n_steps: int = 10
    """Steps between lines of progress where the output is no terminal."""
    save_hf_weights: bool = True
    """Export the student as a Hugging Face folder, output_dir/hf_ckpt, at the end."""

    def __post_init__(self) -> None:
        for part in (ShardingOptions, CheckpointOptions, UpdateOptions):
            part.__post_init__(self)
        _require(bool(self.output_dir), "train.output_dir", self.output_dir, "given")
        _require(
            self.optimizer in ("adamw", "muon") or self.data_parallel_mode == "ddp",
            "train.optimizer",
            self.optimizer,
            f"adamw or muon with train.data_parallel_mode={self.data_parallel_mode}: the others "
            "cannot step sharded matrices",
        )
        sizes = ("micro_batch_size", "global_batch_size", "max_steps", "log_every_n_steps")
        _require_at_least(1, "train", self, *sizes)
        _require_at_least(0, "train", self, "weight_decay", "max_grad_norm")
        _require(self.num_train_epochs > 0, "train.num_train_epochs", self.num_train_epochs, "> 0")
        _require(self.lr > 0, "train.lr", self.lr, "> 0")
        _require(
            0 <= self.lr_min <= self.lr, "train.lr_min", self.lr_min, f"in [0, lr = {self.lr}]"
        )
        _require(
            0 <= self.lr_warmup_ratio < 1,
            "train.lr_warmup_ratio",
            self.lr_warmup_ratio,
            "in [0, 1)",
        )
        _require(
            0 < self.lr_decay_ratio <= 1,
            "train.lr_decay_ratio",
            self.lr_decay_ratio,
            "in (0, 1]",
        )
        _require(
            0 < self.t_min < self.t_max <= 1,
            "train.t_min, train.t_max",
            (self.t_min, self.t_max),
            "0 < t_min < t_max <= 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """What is learned from the teacher, and where it is."""

    distillation_alpha: float = 0.5
    """Share of the teacher's term in (1 - alpha) CE + alpha KD: 0 never asks the teacher, 1 needs
    no labels."""
    teacher_address: str | None = None
    """HOST:PORT of a teacher-server, or several with commas that serve the same weights."""
    teacher_model_path: str | None = None
    """Teacher checkpoint. Without an address, a local teacher-server is started for it as a child
    of each node's first rank. Its configuration and tokenizer are read where the student has none
    of its own, its weights where the student starts from them."""
    init_student_from_teacher: bool | None = None
    """Copy the teacher's weights into the student (all, or evenly spaced layers for a shallower
    one). None = yes where model.model_path and model.config_path are both empty."""
    student_layers: list[int] = field(default_factory=list)
    """Layers of the teacher, counted from 0 and rising, that the student is made of, such as
    [0, 5, 11], instead of evenly spaced ones; their number is the student's depth."""
    freeze_teacher: bool = True
    """The teacher is never trained: it lives in another process. Only true is possible."""
    use_stored_logits: bool = False
    """Train from targets that `distill precompute` wrote; no teacher is asked."""
    stored_logits_path: str | None = None
    """The store: a folder or an fsspec URL. Needed with use_stored_logits, not read without."""
    stored_logits_skip_corrupt: bool = False
    """Leave out records of the store that are damaged, each with a warning, instead of ending the
    run. Only for stores made over a data set; a store of a run's own states has no substitute."""
    teacher_revision: str | None = None
    """Revision that the teacher, or the store, must have; None = any."""
    temperature: float = 1.0
    """Softens both distributions; the KD term is multiplied by its square."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """forward_kl KL(teacher, student), reverse_kl KL(student, teacher), jsd between them."""
    jsd_beta: float = 0.5
    """The teacher's share of the mixture in jsd."""
    state_source: Literal["noised", "trajectory"] = "noised"
    """noised: data masked at a random t. trajectory: states the teacher passes when it fills in
    the data from a prompt."""
    num_sampling_steps: int = 200
    """trajectory: sampling steps of the teacher."""
    collect_every_n_steps: int = 10
    """trajectory: steps i with i % n == 0 are collected."""
    states_per_trajectory: int = 2
    """trajectory: collected states trained on, drawn from each trajectory, since neighbours are
    nearly the same sample; 0 = all."""
    prompt_fraction: float = 0.25
    """trajectory: leading share of a sequence that is given; the rest is masked at the start."""
    diffusion_sampling_alg: Algorithm = "p2"
    """trajectory: the rule by which the teacher picks what to unmask."""
    diffusion_temperature: float = 0.7
    """trajectory: temperature of the token draw, 0 or at least 1e-6. Targets are never tempered by
    it."""
    diffusion_top_k: int = 200
    """trajectory: ids kept for the token draw; 0 = all."""
    diffusion_alg_temp: float = 0.5
    """trajectory: Gumbel temperature on confidences (maskgit_plus, topk_margin, entropy)."""
    diffusion_suppress_mask_token: bool = True
    """trajectory: the teacher never draws the mask id; false = as often as it says, as upstream."""
    diffusion_block_length: int = 0
    """trajectory: positions of a block, counted from the first masked one (low_confidence, random,
    low_confidence_dynamic, entropy_bounded); 0 = one block, or a block-causal teacher's own."""
    diffusion_guidance_scale: float = 0.0
    """trajectory: classifier-free guidance by the prompt, which doubles the teacher's forwards;
    targets are the guided teacher's. 0 = none."""
    diffusion_threshold: float = 0.0
    """trajectory: probability above which low_confidence_dynamic unmasks at once, in (0, 1]."""
    diffusion_entropy_bound: float = 0.0
    """trajectory: bound in nats on the entropies that entropy_bounded unmasks together."""
    encoding: Literal["hidden", "top_k", "logits"] = "hidden"
    """How targets travel: hidden states (exact, the head is fetched once), the most probable ids
    with the mass of the rest, or everything."""
    top_k: int = 64
    """top_k encoding: ids kept a position."""
    value_dtype: Literal["auto", "f32", "f16", "bf16"] = "auto"
    """Number format of targets; auto = the teacher's own, f16 for top_k, f32 for logits. bf16 is
    for hidden alone."""
    prefetch_window: int = 4
    """Micro-batches asked for ahead of the one being trained on, a rank."""
    teacher_timeout_s: float = 120.0
    """Calls that fail are made again; without any progress for this long, the run fails."""
    call_timeout_s: float = 600.0
    """Deadline of one call, which must do for the first answer to it; a call that made progress
    goes on in another one."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.distillation_alpha <= 1,
            "distill.distillation_alpha",
            self.distillation_alpha,
            "in [0, 1]",
        )
        for name in ("temperature", "teacher_timeout_s", "call_timeout_s"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"distill.{name}", value, "> 0 and finite")
        _require(0 < self.jsd_beta < 1, "distill.jsd_beta", self.jsd_beta, "in (0, 1)")
        _require(self.freeze_teacher, "distill.freeze_teacher", self.freeze_teacher, "true")
        _require(
            bool(self.stored_logits_path) or not self.use_stored_logits,
            "distill.stored_logits_path",
            self.stored_logits_path,
            "a folder or URL with distill.use_stored_logits=true",
        )
        _require(
            self.distillation_alpha > 0 or not self.use_stored_logits,
            "distill.use_stored_logits",
            self.use_stored_logits,
            "false with distill.distillation_alpha=0: nothing is learned from targets",
        )
        _require(
            0 <= self.prompt_fraction < 1,
            "distill.prompt_fraction",
            self.prompt_fraction,
            "in [0, 1)",
        )
        counts = ("num_sampling_steps", "collect_every_n_steps", "prefetch_window", "top_k")
        _require_at_least(1, "distill", self, *counts)
        rising = all(a < b for a, b in itertools.pairwise(self.student_layers))
        _require(
            rising and all(layer >= 0 for layer in self.student_layers),
            "distill.student_layers",
            self.student_layers,
            "rising layers of the teacher, counted from 0",
        )
        sampling = ("diffusion_temperature", "diffusion_top_k", "diffusion_alg_temp")
        _require_at_least(0, "distill", self, "states_per_trajectory", *sampling)
        _require(
            self.state_source == "noised" or self.distillation_alpha > 0,
            "distill.state_source",
            self.state_source,
            "noised with distill.distillation_alpha=0: trajectories are the teacher's",
        )
        _require(
            self.value_dtype != "bf16" or self.encoding == "hidden",
            "distill.value_dtype",
            self.value_dtype,
            f"f16 or f32 with distill.encoding={self.encoding}",
        )
        self._check_sampler()
        sources = (self.use_stored_logits, self.teacher_address, self.teacher_model_path)
        if self.distillation_alpha > 0 and not any(sources):
            raise ValueError(
                f"distill.distillation_alpha is {self.distillation_alpha} but no teacher is given: "
                "set distill.teacher_address (a running teacher-server) or "
                "distill.teacher_model_path (one is started), distill.use_stored_logits=true with "
                "distill.stored_logits_path, or distillation_alpha=0"
            )

    def _check_sampler(self) -> None:
        try:
            SamplerConfig(
                algorithm=self.diffusion_sampling_alg,
                num_steps=self.num_sampling_steps,
                temperature=self.diffusion_temperature,
                suppress_mask_token=self.diffusion_suppress_mask_token,
                block_length=self.diffusion_block_length,
                guidance_scale=self.diffusion_guidance_scale,
                threshold=self.diffusion_threshold,
                entropy_bound=self.diffusion_entropy_bound,
            )
        except ValueError as error:
            # Its messages begin with the field's name.
            raise ValueError(f"distill.diffusion_{error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig
    train: TrainConfig
    distill: DistillConfig = field(default_factory=lambda: DistillConfig(distillation_alpha=0.0))

    def __post_init__(self) -> None:
        if self.data.streaming:
            _require(
                self.train.max_steps is not None,
                "train.max_steps",
                self.train.max_steps,
                "given with data.streaming=true: how much data there is is not known",
            )
            _require(
                not self.distill.use_stored_logits,
                "data.streaming",
                self.data.streaming,
                "false with distill.use_stored_logits=true: a store is read by the data's index",
            )

    @property
    def uses_teacher(self) -> bool:
        """True where targets are asked for."""
        return self.distill.distillation_alpha > 0

    @property
    def init_student_from_teacher(self) -> bool:
        """Whether the teacher's weights are copied, the unset default resolved."""
        if self.distill.init_student_from_teacher is not None:
            return self.distill.init_student_from_teacher
        return not (self.model.model_path or self.model.config_path)

    @property
    def loss(self) -> LossConfig:
        """The loss's own section."""
        return LossConfig(
            alpha=self.distill.distillation_alpha,
            temperature=self.distill.temperature,
            divergence=self.distill.divergence,
            jsd_beta=self.distill.jsd_beta,
            weighting=self.train.loss_weighting,
            normalizer=self.train.loss_normalizer,
        )
