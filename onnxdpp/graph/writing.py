"""Bytes into a file so that a reader sees the old content or the new one, whole, whatever happens meanwhile.

They go to a hidden file in the same folder, ``.<name>.<pid>-<random>.onnxdpp``, which is locked (flock)
while it is written; then fsync, rename, fsync of the folder. An interrupted, failed or killed writer leaves
the old file as it was; what a killed one left behind is swept before the next write of the same file, known
by its process being gone (as seen from here: containers may share a folder) and its lock being free. The
rename replaces a name: where that name was a symbolic or hard link, the other name keeps the old bytes. The
mode follows the umask.
"""

import contextlib
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(target: Path, blocks: Iterable[bytes], owner: Path | None = None) -> None:
    """Write or replace a file.

    Parameters
    ----------
    target : Path
        In a folder that exists.
    blocks : iterable of bytes
        The whole content, piece by piece. What it raises comes out as it is.
    owner : path, optional
        The file in whose name, in the same folder, temporary files are swept, if not `target`.

    Raises
    ------
    OSError
        Of the operating system, with the old file untouched and nothing left behind.
    """
    owner = target if owner is None else owner
    _sweep(owner)
    temporary = target.with_name(f".{_tag(owner)}.{os.getpid()}-{secrets.token_hex(4)}.onnxdpp")
    try:
        # Mode 0666 less the umask, or what the folder's default ACL says, as for any new file.
        with temporary.open("xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
                _lock(file)
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # still locked: nobody sweeps it before it has its name
                temporary.replace(target)
        if sys.platform == "win32":  # an open file cannot be renamed there
            temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    # Some file systems cannot, and the rename is done anyway.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove temporary files of the same target whose writer is gone."""
    pattern = re.compile(rf"\.{re.escape(_tag(target))}\.(\d{{1,9}})-[0-9a-f]+\.onnxdpp")
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for path in target.parent.iterdir():
            match = pattern.fullmatch(path.name)
            if match and path.is_file() and not _is_another_process(int(match[1])):
                with contextlib.suppress(OSError):
                    with path.open("rb") as file:
                        _lock(file)
                    path.unlink()


def _is_another_process(pid: int) -> bool:
    if sys.platform == "win32" or pid == os.getpid():  # on Windows, asking would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _lock(file: BinaryIO) -> None:
    """Take a file's lock or raise OSError: another writer has it, or the file system has no locks."""
    if sys.platform != "win32":  # there, an open file cannot be removed in the first place
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _tag(target: Path) -> str:
    """The target's name in those of its temporary files, short enough for the usual limit of 255 bytes."""
    encoded = os.fsencode(target.name)
    return target.name if len(encoded) <= 200 else hashlib.sha256(encoded).hexdigest()
