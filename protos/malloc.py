"""glibc's allocator for processes that move megabytes, set from within."""

import ctypes

# From malloc.h. As `channel.MALLOC_ENVIRONMENT`, but for what mallopt takes at most.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = (
    (_M_MMAP_THRESHOLD, 1 << 25),
    (_M_TRIM_THRESHOLD, (1 << 31) - 1),
    (_M_TOP_PAD, 1 << 26),
)


def keep_freed_memory() -> bool:
    """Keeps freed buffers for the next ones; else each is mapped and faulted in anew.

    Returns:
        False, and nothing is done, where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(name, value) for name, value in _SETTINGS])
