import dataclasses

import pytest

from masked_diffusion import checkpoints
from masked_diffusion.blueprint import read_blueprint
from masked_diffusion.families import Denoiser
from masked_diffusion.tensor_parallel import distributed_config
from tests import tiny_models


@pytest.fixture
def on_meta(tiny_checkpoint) -> Denoiser:
    return read_blueprint(str(tiny_checkpoint)).build_on_meta()


def test_layers_are_split_and_head_and_embeddings_stay_whole(on_meta):
    config = distributed_config(on_meta, num_ranks=2)

    assert config.tp_size == 2
    assert config.tp_plan == {"model.embed_tokens": "replicate", "lm_head": "replicate"}
    # What is not overridden stays as transformers has it.
    assert on_meta.model.tp_plan["model.layers.*.mlp.down_proj"] == "rowwise"


def test_an_untied_head_stays_whole_too(tiny_tokenizer, tmp_path):
    config = tiny_models.qwen2_config(vocab_size=320, tie_word_embeddings=False)
    checkpoints.save_denoiser(
        checkpoints.new_denoiser(config, tiny_tokenizer, seed=0), tmp_path / "untied"
    )
    untied = read_blueprint(str(tmp_path / "untied")).build_on_meta()

    plan = distributed_config(untied, num_ranks=2).tp_plan
    assert plan == {"model.embed_tokens": "replicate", "lm_head": "replicate"}


def test_a_field_that_the_ranks_cannot_share_is_named(on_meta):
    with pytest.raises(ValueError, match=r"num_attention_heads of .* is 2, which 3 ranks cannot"):
        distributed_config(on_meta, num_ranks=3)


def test_a_model_without_a_plan_is_refused(on_meta):
    on_meta.model.tp_plan = None
    with pytest.raises(ValueError, match=r"Qwen2ForCausalLM .* has no tensor-parallel plan"):
        distributed_config(on_meta, num_ranks=2)


def test_a_block_causal_model_is_refused(on_meta):
    on_meta.info = dataclasses.replace(on_meta.info, block_length=4)
    with pytest.raises(ValueError, match="is block-causal; its rows are served from caches"):
        distributed_config(on_meta, num_ranks=2)


def test_one_process_alone_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match="needs at least 2 ranks, but there is 1"):
        checkpoints.load_denoiser(str(tiny_checkpoint), tensor_parallel=True)


def test_quantization_and_adapters_are_refused(tiny_checkpoint):
    for more in ({"quantization": "int8"}, {"adapters": ["adapter"]}):
        with pytest.raises(ValueError, match="cannot be combined with adapters or quantization"):
            checkpoints.load_denoiser(str(tiny_checkpoint), tensor_parallel=True, **more)
