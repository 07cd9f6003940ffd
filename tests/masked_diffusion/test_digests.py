from pathlib import Path

import torch
from torch import nn

from masked_diffusion import checkpoints, digests
from tests import tiny_models


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.second = nn.Parameter(torch.randn(3, 3, generator=generator))


def test_a_change_of_one_weight_changes_the_digest() -> None:
    module = TwoLayers()
    before = digests.weights_digest(module)
    assert before == digests.weights_digest(TwoLayers())
    module.second.data[2, 2] += 1e-6
    assert digests.weights_digest(module) != before


def test_dtypes_names_and_shapes_belong_to_the_digest() -> None:
    reshaped, added = TwoLayers(), TwoLayers()
    reshaped.first.data = reshaped.first.data.view(9, 1)
    added.third = nn.Parameter(torch.empty(0))
    modules = [TwoLayers(), TwoLayers().double(), reshaped, added]
    assert len({digests.weights_digest(module) for module in modules}) == 4


def test_transposed_storage_does_not_matter() -> None:
    module = TwoLayers()
    module.first.data = module.first.data.t().contiguous().t()
    assert digests.weights_digest(module) == digests.weights_digest(TwoLayers())


def test_tied_tensors_count_once() -> None:
    tied, equal = TwoLayers(), TwoLayers()
    tied.second = tied.first
    equal.second.data = equal.first.data.clone()
    assert digests.weights_digest(tied) != digests.weights_digest(equal)


def test_bfloat16_and_empty_and_scalar_tensors_have_digests() -> None:
    tensors = [torch.ones(2, dtype=torch.bfloat16), torch.empty(0), torch.tensor(1.0)]
    assert len({digests.tensors_digest(weight=tensor) for tensor in tensors}) == 3
    assert digests.tensors_digest(weight=tensors[0], bias=None) == digests.tensors_digest(
        weight=tensors[0]
    )


def test_file_layout_does_not_matter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    denoiser = checkpoints.load_denoiser(str(tiny_checkpoint))
    denoiser.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = checkpoints.load_denoiser(str(tmp_path))
    assert checkpoints.weights_digest(again) == checkpoints.weights_digest(denoiser)
    assert checkpoints.head_digest(again) == checkpoints.head_digest(denoiser)


def test_the_head_digest_sees_the_head_only(tiny_checkpoint: Path) -> None:
    denoiser = checkpoints.load_denoiser(str(tiny_checkpoint))
    before = checkpoints.head_digest(denoiser)
    with torch.no_grad():
        denoiser.get_parameter("model.model.norm.weight")[0] += 1
    assert checkpoints.head_digest(denoiser) == before
    with torch.no_grad():
        denoiser.head_weight[-1, -1] += 1
    assert checkpoints.head_digest(denoiser) != before


def test_a_fingerprint_belongs_to_the_vocabulary() -> None:
    tokenizer = tiny_models.train_tokenizer()
    before = digests.tokenizer_fingerprint(tokenizer)
    assert before == digests.tokenizer_fingerprint(tiny_models.train_tokenizer())
    assert before != digests.tokenizer_fingerprint(tiny_models.train_tokenizer(vocab_size=290))
    tokenizer.add_tokens(["<extra>"])
    assert digests.tokenizer_fingerprint(tokenizer) != before


def test_one_checkpoint_called_otherwise_is_another_revision(tiny_checkpoint: Path) -> None:
    shifted, aligned = (
        checkpoints.load_denoiser(str(tiny_checkpoint), alignment=alignment)
        for alignment in ("shifted", "aligned")
    )
    assert digests.weights_digest(shifted.model) == digests.weights_digest(aligned.model)
    assert digests.weights_digest(shifted) != digests.weights_digest(aligned)
