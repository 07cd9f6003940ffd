"""The training run whose overhead is measured: sizes in the proportions of a real one."""

import math
from dataclasses import dataclass

import numpy as np
from transformers import Qwen2Config

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, DenoiserInfo
from student_trainer.batches import BatchPlan
from student_trainer.data import TokenizedDataset
from student_trainer.states import BatchReader
from tests.bench.instant_targets import InstantTargets

_MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A student whose body takes nearly all of a step, as in models that are used.

    The head holds 6 % of the parameters; 7 % in Qwen2.5-Coder 7B, 28 % in 0.5B.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    seq_len: int = 128
    micro_batch_size: int = 4
    """Half of the trainer's default: a short run has more steps, and what a step costs whatever
    its size weighs twice."""
    teacher_hidden_size: int = 320
    top_k: int = 64
    seed: int = 0

    @property
    def mask_token_id(self) -> int:
        """The last id."""
        return self.vocab_size - 1

    def student_config(self) -> Qwen2Config:
        """Of a Qwen2 with the usual ratio of widths."""
        return self._config(self.hidden_size, num_layers=self.num_layers, num_heads=self.num_heads)

    def teacher_config(self, *, num_parameters: int) -> Qwen2Config:
        """Of a wider teacher, as deep as it takes to have at least this many parameters."""
        width = 2 * self.hidden_size
        per_layer = (4 + 3 * _MLP_RATIO) * width**2
        num_layers = math.ceil((num_parameters - self.vocab_size * width) / per_layer)
        return self._config(width, num_layers=num_layers, num_heads=2 * self.num_heads)

    def _config(self, hidden_size: int, *, num_layers: int, num_heads: int) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=hidden_size,
            intermediate_size=_MLP_RATIO * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            max_position_embeddings=self.seq_len,
            tie_word_embeddings=True,
        )

    def new_student(self) -> Denoiser:
        """With random weights and without a tokenizer."""
        return checkpoints.new_denoiser(
            self.student_config(), None, seed=self.seed, mask_token_id=self.mask_token_id
        )

    def instant_targets(self) -> InstantTargets:
        """What the server without a model sends."""
        return InstantTargets(
            vocab_size=self.vocab_size,
            mask_token_id=self.mask_token_id,
            hidden_size=self.teacher_hidden_size,
            max_length=self.seq_len,
            top_k=self.top_k,
        )

    def reader(self, info: DenoiserInfo, *, num_steps: int) -> BatchReader:
        """Random tokens, sequences of one length, every one seen once."""
        num_sequences = num_steps * self.micro_batch_size
        ids = np.random.default_rng(self.seed).integers(
            0, self.mask_token_id, size=num_sequences * self.seq_len, dtype=np.int32
        )
        dataset = TokenizedDataset(
            token_ids=ids,
            offsets=np.arange(num_sequences + 1) * self.seq_len,
            prompt_lengths=np.zeros(num_sequences, dtype=np.int32),
            num_documents=num_sequences,
            num_dropped_chunks=0,
            num_dropped_tokens=0,
        )
        return BatchReader(
            dataset=dataset,
            plan=BatchPlan(
                dataset_size=num_sequences, global_batch_size=self.micro_batch_size, seed=self.seed
            ),
            micro_batch_size=self.micro_batch_size,
            rank=0,
            world_size=1,
            info=info,
        )
