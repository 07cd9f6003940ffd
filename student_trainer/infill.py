"""In-filling: held-out functions whose middle lines a denoiser has to write again.

As many mask tokens are given as the original lines have: the length is told, not found (an
oracle length, as is usual when in-filling is measured).
"""

import ast
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masked_diffusion.families import Denoiser
from masked_diffusion.samplers import SamplerConfig
from masked_diffusion.sampling import sample
from student_trainer.corpus import SourceFile
from student_trainer.evaluation.forwards import evaluating

MIN_STATEMENTS = 3  # one given before the gap, one in it, one after
MIN_GAP_LINES, MAX_GAP_LINES = 2, 8


@dataclass(frozen=True, kw_only=True)
class FunctionGap:
    """A function cut into what is given and the lines between, which are to be filled in.

    Middle and suffix begin with a line break, for tokens do not reach across its front.
    """

    path: str
    name: str
    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True, kw_only=True)
class Infilling:
    middle: str
    """What stands in place of the original middle."""
    num_masked: int
    token_accuracy: float
    """Share of the masked tokens that equal the original."""
    parses: bool
    """Whether the whole function is valid Python."""


def pick_functions(
    files: Iterable[SourceFile], tokenizer: PreTrainedTokenizerBase, *, num: int, max_tokens: int
) -> list[FunctionGap]:
    """Chooses at most `num` short functions, evenly spaced over the files, one of a file.

    Args:
        files: Held-out sources; files that this interpreter cannot parse are passed over.
        max_tokens: Limit on a whole function, with a beginning-of-sequence token.
    """
    candidates: list[FunctionGap] = []
    for file in files:
        for gap in _gaps(file):
            if len(_encode(gap.prefix + gap.middle + gap.suffix, tokenizer)[0]) < max_tokens:
                candidates.append(gap)
                break
    num = min(num, len(candidates))
    return [candidates[index * len(candidates) // num] for index in range(num)]


def infill(
    denoiser: Denoiser,
    text_prefix: str,
    text_middle: str,
    text_suffix: str,
    *,
    sampler_config: SamplerConfig,
    seed: int,
) -> Infilling:
    """Masks the tokens of the middle, samples them again and compares with the original.

    The text is tokenized whole, as in training; a token that reaches over a border of the
    middle is masked too.

    Raises:
        ValueError: No tokenizer, or a text longer than the denoiser's maximum.
    """
    tokenizer, mask_token_id = denoiser.tokenizer, denoiser.info.mask_token_id
    if tokenizer is None:
        raise ValueError(f"{denoiser.info.name} was saved without a tokenizer; in-filling needs it")
    ids, spans = _encode(text_prefix + text_middle + text_suffix, tokenizer)
    begin, end = len(text_prefix), len(text_prefix) + len(text_middle)
    masked = [start < end and stop > begin for start, stop in spans]
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    x0_1L = torch.tensor([head + ids])
    masked_1L = torch.tensor([[False] * len(head) + masked])
    if x0_1L.shape[1] > denoiser.info.max_length:
        raise ValueError(
            f"{x0_1L.shape[1]} tokens to in-fill, {denoiser.info.name} takes at most "
            f"{denoiser.info.max_length}; lower max_tokens of pick_functions"
        )
    with evaluating(denoiser):
        result = sample(
            denoiser,
            x0_1L.masked_fill(masked_1L, mask_token_id),
            frozen_BL=~masked_1L,
            lengths_B=torch.tensor([x0_1L.shape[1]]),
            config=sampler_config,
            seeds=[seed],
            sequence_ids=[0],
        )
    x_L = result.x[0].cpu()
    agrees_M = x_L[masked_1L[0]] == x0_1L[masked_1L]
    return Infilling(
        middle=_decode(x_L[masked_1L[0]], tokenizer),
        num_masked=len(agrees_M),
        token_accuracy=float(agrees_M.float().mean()),
        parses=_parse(_decode(x_L[len(head) :], tokenizer)) is not None,
    )


def _gaps(file: SourceFile) -> Iterator[FunctionGap]:
    tree = _parse(file.text)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            gap = _gap_of(node, file)
            if gap is not None:
                yield gap


def _gap_of(node: ast.FunctionDef | ast.AsyncFunctionDef, file: SourceFile) -> FunctionGap | None:
    """Cuts out the lines between the first and the last statement after the docstring."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if len(body) < MIN_STATEMENTS:
        return None
    first_end, last_begin = body[0].end_lineno, body[-1].lineno
    assert first_end is not None
    if not MIN_GAP_LINES <= last_begin - 1 - first_end <= MAX_GAP_LINES:
        return None
    # Not splitlines: form feeds, which the library's sources have, end no line for `ast`.
    source = "\n".join(file.text.split("\n")[node.lineno - 1 : node.end_lineno])
    lines = textwrap.dedent(source).split("\n")
    begin, end = first_end - node.lineno + 1, last_begin - node.lineno
    return FunctionGap(
        path=file.path,
        name=node.name,
        prefix="\n".join(lines[:begin]),
        middle="".join(f"\n{line}" for line in lines[begin:end]),
        suffix="".join(f"\n{line}" for line in lines[end:]),
    )


def _decode(token_ids_L: Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(token_ids_L.tolist(), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            return None


def _encode(
    text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], Sequence[tuple[int, int]]]:
    """Returns ids and the span of characters of each."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    return encoded["input_ids"], encoded["offset_mapping"]
