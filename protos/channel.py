"""Options of a gRPC channel that both ends share, so that they cannot disagree."""

import os

# Set before grpc is imported: a trainer forks data-loader workers beside its channel, and without
# this a forked child that uses gRPC aborts or hangs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")

# For processes that move megabytes, set by whoever starts them: with glibc's defaults each large
# buffer is mapped and faulted in anew, which doubles the CPU time per byte of a stream.
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 26),
}

# Messages carry 1 to 2 MiB of data; a request of 2**18 tokens is about 3 MiB. gRPC's own limit of
# 4 MiB is close to that, and no limit at all would let one message exhaust memory.
MAX_MESSAGE_BYTES = 8 * 1024 * 1024

_KEEPALIVE_TIME_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# Well below the client's interval: a server answers faster pings with GOAWAY too_many_pings.
_MIN_PING_INTERVAL_MS = 10_000

_SHARED: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]

CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_SHARED,
    ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # Retries are the client's: gRPC cannot resume a stream after its first message.
    ("grpc.enable_retries", 0),
    # A restarted server is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_SHARED,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    # With port reuse, two servers would share one port in silence instead of the second failing.
    ("grpc.so_reuseport", 0),
]
