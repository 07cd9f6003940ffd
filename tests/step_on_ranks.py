"""The loss and the whole gradient of one step, in a module of its own that ranks import."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from masked_diffusion import checkpoints
from masked_diffusion.families import Denoiser, get_family
from masked_diffusion.families.mdlm_config import MdlmConfig
from student_trainer import losses
from student_trainer.batches import BatchPlan
from student_trainer.config import Config, DataConfig, DistillConfig, TrainConfig
from student_trainer.data import Chunking, tokenize_documents
from student_trainer.documents import Document
from student_trainer.parallel import Parallel, start_parallel
from student_trainer.states import BatchReader, NoisedStates, StateBatch
from student_trainer.step_sums import StepSums
from student_trainer.teacher_head import ShardedTeacherHead
from student_trainer.trainer import Trainer
from tests import tiny_models, training
from tests.fixtures.block_diffusion import SDAR

GLOBAL_BATCH_SIZE = 8


def _qwen2(tokenizer: PreTrainedTokenizerBase, *, tied: bool) -> PreTrainedConfig:
    return tiny_models.qwen2_config(vocab_size=len(tokenizer), tie_word_embeddings=tied)


def _block_causal(tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    changes = {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return get_family("sdar").read_config({**SDAR, **changes})


def _uniform(tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    return MdlmConfig(
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        noise="uniform",
        time_conditioning=True,
        model_length=64,
        hidden_dim=32,
        cond_dim=16,
        n_blocks=2,
        n_heads=2,
        dropout=0.0,
    )


STUDENTS: Mapping[str, Callable[[PreTrainedTokenizerBase], PreTrainedConfig]] = {
    "tied": functools.partial(_qwen2, tied=True),
    "untied": functools.partial(_qwen2, tied=False),
    "block_causal": _block_causal,
    "uniform": _uniform,
}


class Case:
    """A student, its teacher, and the states of a step on this rank."""

    def __init__(self, parallel: Parallel, fields: dict) -> None:
        tokenizer = tiny_models.train_tokenizer()
        self.is_uneven = fields.pop("is_uneven", False)
        self.empty_places = fields.pop("empty_places", ())
        model_config = STUDENTS[fields.pop("student", "tied")](tokenizer)
        self.parallel = parallel
        self.teacher = checkpoints.new_denoiser(model_config, tokenizer, seed=9)
        denoiser = checkpoints.new_denoiser(model_config, tokenizer, seed=5)
        self.config = Config(
            data=DataConfig(train_path="unused"),
            train=TrainConfig(output_dir="unused", ckpt_manager="none", **fields),
            distill=DistillConfig(distillation_alpha=0.5, teacher_address="unused"),
        )
        head = losses.TeacherHead(self.teacher.head_weight.detach())
        self.sharded_head = None
        if parallel.has_group and self.config.train.data_parallel_mode != "ddp":
            self.sharded_head = ShardedTeacherHead(
                head, rank=parallel.rank, world_size=parallel.world_size
            )
        self.head = self.sharded_head or head
        documents = [Document(text=text, source="s") for text in training.texts(24)]
        dataset = tokenize_documents(
            documents, tokenizer, chunking=Chunking(max_seq_len=48, min_chunk_tokens=4)
        )
        self.reader = BatchReader(
            dataset=dataset,
            plan=BatchPlan(dataset_size=len(dataset), global_batch_size=GLOBAL_BATCH_SIZE, seed=0),
            micro_batch_size=self.config.train.micro_batch_size,
            rank=parallel.rank,
            world_size=parallel.world_size,
            info=denoiser.info,
        )
        self.denoiser: Denoiser = denoiser
        self.trainer = Trainer(
            self.config, denoiser, parallel, num_steps=1, teacher_head=self.sharded_head
        )

    def arriving(self) -> Iterator[list[StateBatch]]:
        source = NoisedStates(reader=self.reader, config=self.config.train, teacher=None)
        for micro_step in self.reader.micro_steps(0, 1):
            first = self.reader.places(micro_step).start
            made = [self._emptied(batch, first) for batch in source.states(micro_step)]
            batches = [self._with_teacher(batch) for batch in made]
            if self.is_uneven and self.parallel.rank == 0:
                batches = [part for batch in batches for part in _rows(batch)]
            yield batches

    def _emptied(self, batch: StateBatch, first: int) -> StateBatch:
        """The same without a loss in those sequences of the global batch that have none."""
        rows = [row for row in range(len(batch.xt_BL)) if first + row in self.empty_places]
        loss_BL = batch.loss_BL.clone()
        loss_BL[rows] = False
        kept_M = loss_BL[batch.loss_BL]
        return dataclasses.replace(batch, loss_BL=loss_BL, labels_M=batch.labels_M[kept_M])

    def _with_teacher(self, batch: StateBatch) -> StateBatch:
        mask_BL = torch.arange(batch.xt_BL.shape[1]) < batch.lengths_B[:, None]
        info = self.teacher.info
        with torch.no_grad():
            hidden_MD = self.teacher(
                batch.xt_BL,
                mask_BL,
                clean_ids_BL=batch.clean_BL if info.attention == "block_causal" else None,
                times_B=batch.t_B if info.uses_time else None,
            )[batch.loss_BL]
        return dataclasses.replace(batch, targets=losses.HiddenTargets(hidden_MD, self.head))


def _rows(batch: StateBatch) -> list[StateBatch]:
    """One batch a row, as a rank has more of where its trajectories were longer."""
    assert isinstance(batch.targets, losses.HiddenTargets)
    ends = batch.loss_BL.sum(-1).cumsum(0).tolist()
    parts = []
    for row, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        parts.append(
            dataclasses.replace(
                batch,
                xt_BL=batch.xt_BL[row : row + 1],
                lengths_B=batch.lengths_B[row : row + 1],
                loss_BL=batch.loss_BL[row : row + 1],
                labels_M=batch.labels_M[start:end],
                t_B=batch.t_B[row : row + 1],
                num_maskable_B=batch.num_maskable_B[row : row + 1],
                clean_BL=None if batch.clean_BL is None else batch.clean_BL[row : row + 1],
                targets=losses.HiddenTargets(
                    batch.targets.hidden_MD[start:end], batch.targets.head
                ),
            )
        )
    return parts


def measure(case: Case) -> dict[str, torch.Tensor]:
    """The loss and all gradients after the normalisation, whole, by parameter name."""
    trainer, sums = case.trainer, StepSums()
    wholes = []
    head = case.sharded_head
    assert head is None or head.num_bytes < case.teacher.head_weight.nbytes
    gathered = trainer._teacher_head.gathered if trainer._teacher_head else None
    context = gathered() if gathered else None
    if context is not None:
        context.__enter__()
    batches = list(trainer._batches(case.arriving(), case.reader.num_micro_steps, sums))
    for index, arrived in enumerate(batches):
        trainer._backward(*arrived, is_last=index == len(batches) - 1)
        wholes.append(not isinstance(case.denoiser.head_weight, DTensor))
    if context is not None:
        context.__exit__(None, None, None)
    if trainer._laid_out.is_sharded:
        # Whole from the first forward of a step to its last backward.
        assert wholes == [True] * (len(batches) - 1) + [False], wholes
    trainer._normalize(sums)
    total = StepSums.from_list(case.parallel.sum(sums.to_list()))
    found = {"loss": torch.tensor(total.loss, dtype=torch.float64)}
    for name, parameter in case.denoiser.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad
        found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()
    return found


def measure_all(cases: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Measures every case on the ranks of this group; a safetensors file of each."""
    with start_parallel() as parallel:
        for name, fields in cases.items():
            found = measure(Case(parallel, dict(fields)))
            if parallel.is_main:
                save_file(found, folder / f"{name}.safetensors")
