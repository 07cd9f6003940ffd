"""Gaps in held-out functions, and what a denoiser puts there."""

import ast

import pytest
import torch

from masked_diffusion.checkpoints import new_denoiser
from masked_diffusion.samplers import SamplerConfig
from student_trainer.corpus import SourceFile
from student_trainer.infill import infill, pick_functions
from tests.tiny_models import qwen2_config

FUNCTION = '''\
def total(values):
    """Adds up."""
    result = 0
    # one by one
    for value in values:
        result += value
    return result'''
MODULE = f"import os\n\x0c\nclass Adder:\n    def short(self):\n        return 1\n\n{FUNCTION}\n"
CONFIG = SamplerConfig(algorithm="p2", num_steps=8)


def files(*texts):
    return [SourceFile(path=f"module{index}.py", text=text) for index, text in enumerate(texts)]


def gap_of(tokenizer):
    (gap,) = pick_functions(files(MODULE), tokenizer, num=1, max_tokens=200)
    return gap


def test_the_gap_is_what_lies_between_the_first_and_the_last_statement(tiny_tokenizer):
    gap = gap_of(tiny_tokenizer)
    assert (gap.path, gap.name) == ("module0.py", "total")
    assert gap.prefix + gap.middle + gap.suffix == FUNCTION
    assert gap.prefix.endswith("result = 0")
    assert gap.suffix == "\n    return result"


def test_methods_are_dedented(tiny_tokenizer):
    indented = "\n".join(f"    {line}" for line in FUNCTION.split("\n"))
    (gap,) = pick_functions(files(f"class A:\n{indented}\n"), tiny_tokenizer, num=1, max_tokens=200)
    assert gap.prefix + gap.middle + gap.suffix == FUNCTION


def test_long_functions_and_files_that_do_not_parse_are_passed_over(tiny_tokenizer):
    num_tokens = len(tiny_tokenizer(FUNCTION)["input_ids"])
    sources = files("def broken(:\n", MODULE, "'\\d'\n")
    assert len(pick_functions(sources, tiny_tokenizer, num=5, max_tokens=num_tokens + 1)) == 1
    assert pick_functions(sources, tiny_tokenizer, num=5, max_tokens=num_tokens) == []


def test_functions_are_spread_over_the_files(tiny_tokenizer):
    sources = files(*[MODULE.replace("total", f"total{index}") for index in range(9)])
    gaps = pick_functions(sources, tiny_tokenizer, num=3, max_tokens=200)
    assert [gap.name for gap in gaps] == ["total0", "total3", "total6"]


def test_an_infilling_keeps_what_is_given_and_depends_on_the_seed_alone(
    tiny_tokenizer, tiny_denoiser
):
    gap = gap_of(tiny_tokenizer)
    config = SamplerConfig(algorithm="origin", num_steps=4, temperature=1.0)

    def fill(seed):
        return infill(
            tiny_denoiser, gap.prefix, gap.middle, gap.suffix, sampler_config=config, seed=seed
        )

    first = fill(0)
    assert first == fill(0)
    assert first.middle != fill(1).middle
    assert first.num_masked == len(tiny_tokenizer(gap.middle)["input_ids"])
    assert first.parses == _parses(gap.prefix + first.middle + gap.suffix)


def _parses(text):
    try:
        return bool(ast.parse(text))
    except (SyntaxError, ValueError):
        return False


def test_a_denoiser_that_knows_the_function_writes_it_again(tiny_tokenizer):
    denoiser = new_denoiser(qwen2_config(vocab_size=len(tiny_tokenizer)), tiny_tokenizer, seed=0)
    gap = gap_of(tiny_tokenizer)
    given, middle, after = (
        tiny_tokenizer(text)["input_ids"] for text in (gap.prefix, gap.middle, gap.suffix)
    )
    x0_1L = torch.tensor([[tiny_tokenizer.bos_token_id, *given, *middle, *after]])
    masked_1L = torch.zeros_like(x0_1L, dtype=torch.bool)
    masked_1L[0, 1 + len(given) : 1 + len(given) + len(middle)] = True
    xt_1L = x0_1L.masked_fill(masked_1L, denoiser.info.mask_token_id)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    for _ in range(100):
        logits_MV = denoiser.logits(denoiser(xt_1L)[masked_1L])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits_MV, x0_1L[masked_1L]).backward()
        optimizer.step()

    one_step = SamplerConfig(algorithm="p2", num_steps=1)
    found = infill(denoiser, gap.prefix, gap.middle, gap.suffix, sampler_config=one_step, seed=0)

    assert found.middle == gap.middle
    assert (found.token_accuracy, found.parses) == (1.0, True)
    assert denoiser.training, "the mode is given back as it was"


def test_a_text_longer_than_the_maximum_is_refused(tiny_denoiser):
    with pytest.raises(ValueError, match="takes at most 256"):
        infill(tiny_denoiser, "a = 1\n" * 200, "b", "", sampler_config=CONFIG, seed=0)


def test_a_denoiser_without_a_tokenizer_is_refused():
    denoiser = new_denoiser(qwen2_config(vocab_size=50), None, seed=0, mask_token_id=49)
    with pytest.raises(ValueError, match="without a tokenizer"):
        infill(denoiser, "a", "b", "c", sampler_config=CONFIG, seed=0)
