"""The forks that bring a program's process about, isolated or not."""

import os
import select
from collections.abc import Callable
from typing import NoReturn

from student_trainer.tasks.sandbox import system_calls
from student_trainer.tasks.sandbox.isolation import SandboxError
from student_trainer.tasks.sandbox.rights import NOBODY, becomes_nobody

_NAMESPACES = (
    system_calls.CLONE_NEWUSER
    | system_calls.CLONE_NEWNS
    | system_calls.CLONE_NEWPID
    | system_calls.CLONE_NEWNET
    | system_calls.CLONE_NEWIPC
    | system_calls.CLONE_NEWUTS
    | system_calls.CLONE_NEWCGROUP
)
_UNSHARED = b"+"


def fork_prepared(prepare: Callable[[], None], run: Callable[[], NoReturn]) -> int:
    """Forks a process that prepares itself and then runs.

    Returns:
        Its process id, once `run` has begun.

    Raises:
        SandboxError: `prepare` raised OSError; the process has ended.
    """
    told_r, told_w = os.pipe()
    parent = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        _prepare_and_run(prepare, run, told_w=told_w, parent=parent)
    os.close(told_w)
    os.close(parent)
    _raise_what_is_told(told_r)
    return child


def fork_isolated(prepare: Callable[[], None], run: Callable[[], NoReturn]) -> int:
    """Like `fork_prepared`, in new namespaces, as process 1 of them.

    Between the two is a keeper: only the first child of a process enters its new process
    namespace. Its death kills everything inside, and it ends as process 1 does.

    Returns:
        The process id of the keeper.

    Raises:
        SandboxError: the kernel does not allow it, or `prepare` raised OSError.
    """
    told_r, told_w = os.pipe()
    mapped_r, mapped_w = os.pipe()
    parent = os.pidfd_open(os.getpid())
    keeper = os.fork()
    if keeper == 0:
        os.close(mapped_w)
        _keep(prepare, run, told_w=told_w, mapped_r=mapped_r, parent=parent)
    os.close(told_w)
    os.close(parent)
    os.close(mapped_r)
    with os.fdopen(mapped_w, "wb", buffering=0) as mapped:
        first = os.read(told_r, len(_UNSHARED))
        if first == _UNSHARED:
            first = b""
            _map_users(keeper)
            mapped.write(_UNSHARED)
    _raise_what_is_told(told_r, first)
    return keeper


def _keep(
    prepare: Callable[[], None],
    run: Callable[[], NoReturn],
    *,
    told_w: int,
    mapped_r: int,
    parent: int,
) -> NoReturn:
    """What the keeper does, from its fork to its end."""
    try:
        system_calls.die_with_parent()
        _end_if_ended(parent)
        keeper = os.pidfd_open(os.getpid())
        system_calls.unshare(_NAMESPACES)
    except OSError as error:
        os.write(told_w, str(error).encode())
        os._exit(1)
    os.write(told_w, _UNSHARED)
    if os.read(mapped_r, 1) != _UNSHARED:
        os._exit(1)
    first = os.fork()
    if first == 0:
        _prepare_and_run(prepare, run, told_w=told_w, parent=keeper)
    os.close(told_w)
    _, status = os.waitpid(first, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _prepare_and_run(
    prepare: Callable[[], None], run: Callable[[], NoReturn], *, told_w: int, parent: int
) -> NoReturn:
    try:
        prepare()
        _end_if_ended(parent)
    except OSError as error:
        os.write(told_w, str(error).encode())
        os._exit(1)
    os.close(told_w)
    run()


def _end_if_ended(parent: int) -> None:
    """Ends this process if its parent, a pidfd, has ended; else closes the pidfd.

    The kernel's signal of a parent's death comes only for what happens after it was asked for.
    """
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):
        os._exit(1)
    os.close(parent)


def _raise_what_is_told(told_r: int, first: bytes = b"") -> None:
    """Waits for the other side to begin its run or to tell why not."""
    with os.fdopen(told_r, "rb") as told:
        message = first + told.read()
    if message:
        raise SandboxError(message.decode(errors="replace"))


def _map_users(keeper: int) -> None:
    """Says who the users of the new namespace are outside: nobody besides root, or just this one.

    Raises:
        SandboxError: the kernel does not allow it.
    """
    try:
        nobody = f"{NOBODY} {NOBODY} 1\n" if becomes_nobody() else ""
        if not nobody:
            # Asked of who may map no one but themselves.
            _write(f"/proc/{keeper}/setgroups", "deny")
        _write(f"/proc/{keeper}/gid_map", f"{os.getegid()} {os.getegid()} 1\n{nobody}")
        _write(f"/proc/{keeper}/uid_map", f"{os.geteuid()} {os.geteuid()} 1\n{nobody}")
    except OSError as error:
        raise SandboxError(f"user namespace: {error}") from error


def _write(path: str, text: str) -> None:
    # One write call: the kernel takes a map whole or not at all.
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())
