"""Configuration of the server: a frozen dataclass per owner, the text under a field its manual.

Command-line options are made from these fields: `max_batch_tokens` is `--max-batch-tokens`.
"""

import math
from dataclasses import dataclass


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _require_not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What one engine may hold and how it forms batches."""

    max_batch_tokens: int = 8192
    """Tokens of one denoising step, padding included."""
    max_padding_fraction: float = 0.1
    """Share of a batch that may be padding, where the teacher cannot pack rows without any; rows
    of other lengths wait for the next step."""
    pad_rows: bool = False
    """Pad batches even where the teacher can pack rows."""
    compile: bool = False
    """Run the body through torch.compile, with padded batches; on a GPU as CUDA graphs of bucket
    shapes. Compiling takes from seconds to minutes before the server listens."""
    hold_until_rows: int = 0
    """For tests of exact batches: an engine without work waits until so many rows are there. 0
    waits for nothing."""
    max_queue_tokens: int = 1_048_576
    """Tokens of all admitted rows; a request that does not fit is refused with a retry hint."""
    max_pending_output_bytes: int = 1_073_741_824
    """Bytes of targets that all streams together may hold before new requests are refused; one
    step makes no more than this either, but for a single row."""
    stream_window_bytes: int = 8_388_608
    """Bytes of targets that one stream may hold before its rows wait for the reader."""
    max_head_elements: int = 16_777_216
    """Elements of one chunk of logits, positions times vocabulary; bounds the head's memory. Fewer
    are taken where that is faster."""
    max_cache_bytes: int = 1_073_741_824
    """Bytes of keys and values that trajectories of a block-causal teacher may hold; rows beyond
    it compute their finished blocks again at every step. 0 caches nothing."""
    deterministic: bool = False
    """Forwards of fixed shapes: targets are bit-identical whatever else is served, on any replica
    with the same hardware, libraries and number of threads, and after a retry; at the cost of
    speed. Block-causal teachers run one row a step, without their cache."""
    health_interval_s: float = 30.0
    """Health is lost when no forward succeeded for this long; an idle engine runs one in time."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "max_batch_tokens",
            "max_queue_tokens",
            "max_pending_output_bytes",
            "stream_window_bytes",
            "max_head_elements",
            "health_interval_s",
        )
        _require_not_negative(self, "max_cache_bytes", "hold_until_rows")
        if self.compile and self.deterministic:
            raise ValueError(
                "compile must be false with deterministic, got true: what a compiler makes of a "
                "row may depend on the rows beside it"
            )
        if not 0 <= self.max_padding_fraction < 1:
            raise ValueError(
                f"max_padding_fraction must be in [0, 1), got {self.max_padding_fraction}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AutotuneConfig:
    """Options of the engine that are measured on the loaded teacher before it serves."""

    autotune: bool = False
    """Measure token budget, packing, head chunk and CPU threads; options given on the command line
    stay as given. A file that fits is read instead."""
    autotune_file: str = ""
    """JSON that the choice is written to and read from; one of another model, device or torch is
    not used, with a warning."""
    autotune_seconds: float = 30.0
    """The measurements take about this long; a slow teacher gets fewer of them."""

    def __post_init__(self) -> None:
        _require_positive(self, "autotune_seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitsConfig:
    """Limits of one request, told by DescribeTeacher."""

    max_sequences: int = 1024
    """Sequences in a request."""
    max_tokens: int = 262_144
    """Tokens in a request, all sequences together."""
    max_clean_length: int = 8192
    """Tokens of one sequence that comes with its clean ids: the attention masks of its two streams
    grow with the square of twice this."""
    max_num_steps: int = 4096
    """Sampling steps of a trajectory."""
    max_top_k: int = 4096
    """Ids kept a position with the TOP_K encoding."""
    max_temperatures: int = 8
    """Distillation temperatures in a request."""
    max_deadline_s: float = 3600.0
    """Longest time a request may live; it also bounds requests that name no deadline."""

    def __post_init__(self) -> None:
        _require_positive(self, *self.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where it listens, what it says, how it stops."""

    listen: str = "127.0.0.1:50051"
    """Address and port; port 0 takes a free one, which the ready line tells."""
    drain_timeout_s: float = 30.0
    """After SIGTERM, live streams have this long to finish."""
    status_interval_s: float = 10.0
    """Seconds between status lines; 0 for none."""
    engine_in_process: bool = False
    """Run the engine in a thread beside the front instead of in a process of its own: less memory,
    but the two wait for each other's Python."""
    exit_with_stdin: bool = False
    """Stop when standard input ends, so that a server started as a child never outlives it."""

    def __post_init__(self) -> None:
        _require_not_negative(self, "drain_timeout_s", "status_interval_s")
        host, separator, port = self.listen.rpartition(":")
        if not (separator and host and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004
            raise ValueError(f"listen must be HOST:PORT, got {self.listen!r}")
