"""An inspection as lines to read, one fact a line."""

from collections.abc import Iterator, Sequence

from teacher_server.inspection import Inspection

LABEL_WIDTH = 14
MAX_NAMES = 5
"""Of a list of names; the rest is counted."""
FORMAT_NOTES = {
    "int8": ", head and embeddings in bfloat16",
    "int4": ", head and embeddings in bfloat16; packed on a GPU, on a CPU as much as int8",
}
BYTES_PER_GIB = 2**30
BYTES_PER_MIB = 2**20


def inspection_text(inspection: Inspection) -> str:
    """Renders everything; the last lines tell what is wrong with the files, if anything is."""
    return "\n".join(f"{label:<{LABEL_WIDTH}}{value}" for label, value in _facts(inspection))


def bytes_text(num_bytes: int) -> str:
    """GiB, or MiB below one tenth of a GiB."""
    if num_bytes < BYTES_PER_GIB / 10:
        return f"{num_bytes / BYTES_PER_MIB:.2f} MiB"
    return f"{num_bytes / BYTES_PER_GIB:.2f} GiB"


def _facts(facts: Inspection) -> Iterator[tuple[str, str]]:
    alignment_from = {
        "given": "as given",
        "config": "from config.logit_alignment",
        "family": "the family's",
        "unknown": "only a trained model can tell: the server probes it, or give --alignment",
    }
    yield "model", facts.name
    yield "family", f"{facts.family} ({facts.model_class})"
    yield "attention", _attention(facts)
    yield "noise", facts.noise + (", conditioned on time" if facts.uses_time else "")
    yield (
        "alignment",
        f"{facts.alignment or 'unknown'} ({alignment_from[facts.alignment_source]})",
    )
    yield "mask id", f"{facts.mask_token_id} (from {_source(facts.mask_token_source)})"
    yield "special ids", _special(facts)
    yield "vocabulary", f"{facts.vocab_size}, padded to {facts.padded_vocab_size}"
    yield "head", _head(facts)
    layers = "unknown" if facts.num_layers is None else str(facts.num_layers)
    yield "size", f"{layers} layers, width {facts.hidden_size}, {facts.num_parameters} parameters"
    yield "max length", f"{facts.max_length} positions"
    yield "tokenizer", _tokenizer(facts)
    for name, num_bytes in facts.memory_bytes.items():
        size = "impossible: rows do not divide into groups"
        if num_bytes is not None:
            size = bytes_text(num_bytes) + FORMAT_NOTES.get(name, "")
        yield f"in {name}", size
    yield from _weights(facts)


def _attention(facts: Inspection) -> str:
    if facts.block_length is None:
        return facts.attention
    return f"{facts.attention}, blocks of {facts.block_length}"


def _source(mask_token_source: str) -> str:
    return "--mask-token-id" if mask_token_source == "given" else mask_token_source


def _special(facts: Inspection) -> str:
    roles = [f"{role} {token_id}" for role, token_id in facts.special_token_ids.items()]
    others = [str(token_id) for token_id in facts.other_special_token_ids]
    return ", ".join(roles) + (f"; others: {_shortened(others)}" if others else "")


def _head(facts: Inspection) -> str:
    num_rows, width = facts.head.shape
    tied = "tied to the embedding" if facts.head.tied else "a matrix of its own"
    return f"[{num_rows}, {width}], {tied}, {'with' if facts.head.bias else 'no'} bias"


def _tokenizer(facts: Inspection) -> str:
    tokenizer = facts.tokenizer
    if tokenizer is None:
        return "none"
    template = "a" if tokenizer.chat_template else "no"
    return f"{tokenizer.tokenizer_class} {tokenizer.fingerprint}, {template} chat template"


def _weights(facts: Inspection) -> Iterator[tuple[str, str]]:
    weights = facts.weights
    stored = ", ".join(f"{count} {dtype}" for dtype, count in sorted(weights.dtypes.items()))
    files = f"{weights.num_files} file{'' if weights.num_files == 1 else 's'}"
    yield "on disk", f"{bytes_text(weights.num_bytes)} in {files} ({stored or 'no numbers'})"
    problems = {
        "missing" if weights.is_folder else "to fetch": weights.missing_files,
        "damaged": weights.damaged_files,
        "not stored": weights.missing_tensors,
        "unused": weights.unused_tensors,
    }
    for label, names in problems.items():
        if names:
            yield label, f"{len(names)}: {_shortened(names)}"


def _shortened(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f", and {rest} more" if rest > 0 else "")
