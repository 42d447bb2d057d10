"""One build at a time writes into a folder: a lock that the kernel takes from its owner, however that one dies.

`flock` on `OUT/.build/lock`. What the file says is for the message of those who come too late; only the lock itself
decides. The owner removes the file at its end, under the lock: who opened it just before finds that its path names
another file or none, and opens anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sarsense.errors import SarsenseError
from sarsense.places import Place, work_folder

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM)
_TRIES = 100

_held: set[int] = set()


def _forget() -> None:
    """A lock belongs to all copies of its descriptor: one in a forked child would keep it when this process is dead."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(out: Place, say: Callable[[str], None]) -> Iterator[None]:
    """Nobody else writes into `out` meanwhile. SarsenseError, which says who does, where one is at it already.

    Of a remote one, nobody else with the same work folder. Makes `out` and its `.build`, and removes those that it made
    where nothing else came into them. Where the file system knows no locks, `say` is told; where `out` cannot be
    written, there is nothing to lock: who tries to write will know.
    """
    work = work_folder(out)
    made = [folder for folder in (work, out) if isinstance(folder, Path) and not folder.exists()]
    descriptor = _acquire(out, work / "lock", say)
    if descriptor is None:
        yield
        return
    _held.add(descriptor)
    try:
        yield
    finally:
        (work / "lock").unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # not empty: what a build leaves, the next one goes on from
                folder.rmdir()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(out: Place, path: Path, say: Callable[[str], None]) -> int | None:
    """A descriptor that holds the lock; None where there are no locks to be had."""
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # who had made the folder removed it, between our two steps
        except OSError as error:
            if error.errno in _NOT_OURS:
                return None
            raise SarsenseError(
                f"{out}: cannot be written ({error.strerror}); free or mend the disk, or choose another --out"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            told = _told(path)
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise SarsenseError(
                    f"{out}: another build writes it{told}; wait for it, or choose another --out"
                ) from None
            if error.errno in _NO_LOCKS:
                say(f"warning: {out}: its file system knows no locks: see to it that no other build writes it")
                return None
            raise
        if _is_at(descriptor, path):
            with suppress(OSError):  # the disk is full: the lock holds without a word
                _sign(descriptor)
            return descriptor
        os.close(descriptor)
    raise SarsenseError(f"{out}: cannot be written ({path} is not there when it was just made); choose another --out")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    facts = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(facts, indent=2) + "\n").encode(), 0)


def _told(path: Path) -> str:
    """Who holds the lock, as it says itself."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {facts['process']} on {facts['host']}, since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # it is just writing it, or its disk is full
