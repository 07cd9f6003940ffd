"""The Linux calls that Python 3.11 has no names for, each raising OSError as Python's own do."""

import ctypes
import os
import signal
from collections.abc import Collection

CAP_DAC_READ_SEARCH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_NUM_CAPABILITIES = 64

_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_SYS_MOUNT_SETATTR = 442
"""The same number on every architecture, as all calls since Linux 5.1."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, name: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Moves this process (with CLONE_NEWPID: its next children) into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mounts a file system, or binds a path to another place."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _check(
        _libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}"
    )


def make_read_only(path: str) -> None:
    """Makes the mount at path and all those below it read-only, and set-user-id bits void."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(path),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, f"mount_setattr {path}")


def enter_root(path: str) -> None:
    """Makes the mount at path the root, and leaves the old one behind."""
    os.chdir(path)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def die_with_parent() -> None:
    """Has this process killed when its parent ends; a change of user forgets it."""
    _check(_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "prctl PDEATHSIG")


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent has ended."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "prctl SUBREAPER")


def give_up_new_privileges() -> None:
    """Lets no program that is started from here gain rights by its set-user-id bit."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl NO_NEW_PRIVS")


def bound_capabilities() -> None:
    """Takes every capability out of what this process may ever have again."""
    for capability in range(_NUM_CAPABILITIES):
        # Numbers that this kernel does not know, and a process that may not do this, are refused;
        # the latter has no capability to lose.
        _prctl(_PR_CAPBSET_DROP, capability)


def keep_capabilities_as_another_user() -> None:
    """Lets the next change of user leave the permitted capabilities as they are."""
    _check(_prctl(_PR_SET_KEEPCAPS, 1), "prctl KEEPCAPS")


def keep_capabilities(capabilities: Collection[int]) -> None:
    """Gives up all capabilities of this process but these (each below 32, and permitted)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    kept = sum(1 << capability for capability in capabilities)
    # Effective, permitted and inheritable of the lower 32, then of the upper ones.
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)), "capset")


def _prctl(option: int, value: int) -> int:
    result: int = _libc.prctl(
        ctypes.c_int(option), *(ctypes.c_ulong(argument) for argument in (value, 0, 0, 0))
    )
    return result
