"""A root directory that holds the system and the interpreter, read-only, and room to write."""

import os
import sys
from collections.abc import Iterator

from student_trainer.tasks.sandbox import system_calls
from student_trainer.tasks.sandbox.limits import SandboxLimits

HOME = "/sandbox"
"""The only place in it that can be written to."""

_SYSTEM_PATHS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_MAX_FILES = 10_000


def enter_private_root(scratch: str, limits: SandboxLimits) -> None:
    """Builds the root on an empty folder, enters it and goes to HOME.

    Needs a mount namespace of its own, and the right to mount in it.

    Raises:
        OSError: the kernel does not allow it.
    """
    system_calls.mount(None, "/", None, system_calls.MS_REC | system_calls.MS_PRIVATE)
    flags = system_calls.MS_NOSUID | system_calls.MS_NODEV
    system_calls.mount("tmpfs", scratch, "tmpfs", flags, "mode=755,size=1m")
    for path in _shown_paths():
        _show(path, scratch)
    home = scratch + HOME
    os.mkdir(home)
    system_calls.make_read_only(scratch)
    options = f"mode=1777,size={limits.scratch_bytes},nr_inodes={_MAX_FILES}"
    system_calls.mount("tmpfs", home, "tmpfs", flags, options)
    system_calls.enter_root(scratch)
    os.chdir(HOME)


def _shown_paths() -> Iterator[str]:
    """Yields paths that exist, none of them inside another one."""
    shown: list[str] = []
    # The shorter ones first: a folder comes before what lies in it.
    for path in sorted({*_SYSTEM_PATHS, *_DEVICES, sys.base_prefix, sys.prefix}, key=len):
        inside = any(path.startswith(f"{other}/") for other in shown if not _stays_link(other))
        if os.path.exists(path) and not inside:
            shown.append(path)
            yield path


def _stays_link(path: str) -> bool:
    """Tells /lib, a link to usr/lib, from an interpreter's folder that a link leads to."""
    return path in _SYSTEM_PATHS and os.path.islink(path)


def _show(path: str, root: str) -> None:
    """Binds a path of the old root to the same place in the new one; the system's links stay."""
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if _stays_link(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    system_calls.mount(path, target, None, system_calls.MS_BIND | system_calls.MS_REC)
