"""How the student lies over the ranks: replicated (DDP), sharded (FSDP2), or both (HSDP)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

from student_trainer.objective import DistillationObjective
from student_trainer.parallel import Parallel
from student_trainer.train_options import ShardingOptions


@dataclass(frozen=True, eq=False)
class DataParallelModule:
    """The objective as ranks run it together; gradients are means over ranks."""

    module: nn.Module
    """What is called."""

    @property
    def is_sharded(self) -> bool:
        """Whether a forward is a collective, so that all ranks must run equally many."""
        return isinstance(self.module, FSDPModule)

    @contextlib.contextmanager
    def accumulate(self, *, is_last: bool) -> Iterator[None]:
        """Runs one forward and backward of a step, the last of which finishes the gradients.

        Replicas exchange gradients in the last one alone. Shards reduce the blocks' each time, as
        whole gradients are what there is no room for; everything outside the blocks, the head
        above all, is gathered in the first forward of a step and stays until the last backward.
        """
        if isinstance(self.module, FSDPModule):
            self.module.set_reshard_after_backward(is_last, recurse=False)
            yield
        elif isinstance(self.module, DistributedDataParallel) and not is_last:
            with self.module.no_sync():
                yield
        else:
            yield


def distribute(
    objective: DistillationObjective,
    parallel: Parallel,
    options: ShardingOptions,
    *,
    mixed_precision: bool = False,
) -> DataParallelModule:
    """Lays the objective over the ranks; its parameters become DTensors where they are sharded.

    Raises:
        ValueError: ranks cannot be divided as asked, or one process without torchrun is to offload.
    """
    if parallel.world_size == 1 and not parallel.has_group:
        # One rank's share is everything.
        if options.enable_fsdp_offload:
            raise ValueError("train.enable_fsdp_offload needs ranks; start the run with torchrun")
        return DataParallelModule(objective)
    if options.data_parallel_mode == "ddp":
        return DataParallelModule(_replicate(objective, parallel))
    mesh = _MESHES[options.data_parallel_mode](parallel, options)
    _shard(objective, mesh, options, mixed_precision=mixed_precision)
    return DataParallelModule(objective)


def _replicate(objective: DistillationObjective, parallel: Parallel) -> nn.Module:
    if parallel.world_size == 1:
        return objective
    device_ids = [parallel.device.index] if parallel.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=device_ids, gradient_as_bucket_view=True)


def _flat_mesh(parallel: Parallel, _: ShardingOptions) -> DeviceMesh:
    return init_device_mesh(parallel.device.type, (parallel.world_size,), mesh_dim_names=("shard",))


def _hybrid_mesh(parallel: Parallel, options: ShardingOptions) -> DeviceMesh:
    """Rows of ranks that hold one whole student between them; equal columns are replicas."""
    num_replicas = options.data_parallel_replicate_size
    if parallel.world_size % num_replicas:
        raise ValueError(
            f"train.data_parallel_replicate_size is {num_replicas}, which does not divide the "
            f"{parallel.world_size} ranks"
        )
    shape = (num_replicas, parallel.world_size // num_replicas)
    return init_device_mesh(parallel.device.type, shape, mesh_dim_names=("replicate", "shard"))


_MESHES: Mapping[str, Callable[[Parallel, ShardingOptions], DeviceMesh]] = {
    "fsdp": _flat_mesh,
    "hsdp": _hybrid_mesh,
}


def _shard(
    objective: DistillationObjective,
    mesh: DeviceMesh,
    options: ShardingOptions,
    *,
    mixed_precision: bool,
) -> None:
    offload = (
        CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
        if options.enable_fsdp_offload
        else OffloadPolicy()
    )
    # Blocks are gathered in bfloat16. Their inputs are left alone: autocast decides what runs in
    # which dtype, so that the residual stream is float32 here as it is with replicas.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed_precision else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in objective.denoiser.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    # The rest, embeddings and head, is one group in float32: tied weights must share a group, and
    # the loss reads the head in chunks, for which it has to be whole.
    fully_shard(objective, mesh=mesh, offload_policy=offload, reshard_after_forward=False)
