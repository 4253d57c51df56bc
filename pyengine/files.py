"""Files and folders that are either the old ones or the new ones, never something between.

Everything is written beside its target, flushed to the disk, and renamed into place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyengine.errors import CheckpointError


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in lower-case hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_file(path: str | Path) -> None:
    """Waits until a file's bytes are on the disk."""
    _fsync(path, os.O_RDONLY)


def fsync_folder(path: str | Path) -> None:
    """Waits until a folder's list of names is on the disk."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: str | Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: str | Path) -> None:
    """Waits until a folder and everything below it are on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_file(Path(root) / name)
        fsync_folder(root)


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Writes a file (text as UTF-8) so that a crash leaves the old content or the new one.

    Raises: CheckpointError where the disk refuses; the old content is then intact.
    """
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields an empty file beside `path` that takes its place when the block ends.

    Files that a killed process left behind are swept away. Raises: CheckpointError where the disk
    refuses; what stood there is then intact, as it is when the block raises.
    """
    target = Path(path)
    temp = target.parent / f"{target.name}.tmp-{secrets.token_hex(6)}"
    with _disk_errors(target):
        try:
            with _locked(target.parent):
                _sweep_files(target)
                file = temp.open("xb")
                with contextlib.suppress(OSError):  # held for as long as the file is ours
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temp.replace(target)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        fsync_folder(target.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place when the block ends.

    The new folder is complete on the disk before it appears. An old folder at `path` is
    exchanged for it in one step (where the OS has no such step: renamed aside and back on
    failure), then deleted with all it holds. When the block raises, the old one stays and the
    new one is removed. Folders that a killed process left behind are swept away.

    Raises: CheckpointError where the disk refuses; the old folder is then intact.
    """
    target = Path(path).absolute()
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temp, lock = _make_temp(target)
        try:
            yield temp
            _open_to_umask(temp)
            fsync_tree(temp)
            old = _put_in_place(temp, target)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        fsync_folder(target.parent)
    # The new folder stands; failing to delete the old one is not worth an error.
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _open_to_umask(folder: Path) -> None:
    """Gives files the mode that open() gives: safetensors writes them for the owner only.

    The mode is read off a new file: asking for the umask would change it for all threads.
    """
    probe = folder / f".mode-{secrets.token_hex(6)}"
    with probe.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _sweep_files(target: Path) -> None:
    """Removes temporary files of `target` whose process is gone."""
    for left in _leftovers(target, "tmp", folders=False):
        if _is_abandoned(left):
            left.unlink(missing_ok=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"[save] {target} must be writable but {error.strerror or error}; "
            "what stood there before is intact"
        ) from error


def _make_temp(target: Path) -> tuple[Path, int]:
    """A new folder beside the target and an open lock on it, held for as long as it is ours."""
    with _locked(target.parent):
        for left in _leftovers(target, "tmp"):
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        for left in _leftovers(target, "old"):  # killed between the two renames, or just after
            if target.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.rename(target)
        temp = target.parent / f"{target.name}.tmp-{secrets.token_hex(6)}"
        temp.mkdir()
        lock = os.open(temp, os.O_RDONLY | os.O_DIRECTORY)
        # Without locks on this file system nobody sweeps, so none is needed.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return temp, lock


def _leftovers(target: Path, kind: str, folders: bool = True) -> list[Path]:
    name = re.compile(re.escape(f"{target.name}.{kind}-") + "[0-9a-f]{12}")
    with os.scandir(target.parent) as entries:
        named = [e for e in entries if name.fullmatch(e.name) and not e.is_symlink()]
        found = [e.path for e in named if e.is_dir() == folders]
    return [Path(path) for path in sorted(found)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps two processes from making and sweeping at the same moment."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    """Whether the process that made a temporary folder or file is gone: its lock went with it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _put_in_place(temp: Path, target: Path) -> Path | None:
    """Renames temp to target; returns where the old folder went, if there was one."""
    if not target.exists():
        temp.rename(target)
        return None
    if target.is_symlink() or not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(target))
    if _exchange(temp, target):
        return temp
    aside = target.parent / f"{target.name}.old-{secrets.token_hex(6)}"
    target.rename(aside)
    try:
        temp.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    return aside


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; False where the OS or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    at_cwd, exchange = -100, 2
    result = rename(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange)
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def link_or_copy(source: str | Path, target: str | Path) -> Path:
    """Makes `target` the same file as `source`, by a link where the file system can; atomic.

    For files that are replaced and never written in place. Returns the target.
    Raises: CheckpointError where the disk refuses.
    """
    source, target = Path(source), Path(target)
    temp = target.parent / f"{target.name}.tmp-{secrets.token_hex(6)}"
    with _disk_errors(target):
        if target.exists() and target.samefile(source):
            return target
        try:
            try:
                os.link(source, temp)
            except OSError:  # another file system
                shutil.copyfile(source, temp)
                fsync_file(temp)
            temp.replace(target)
        finally:
            temp.unlink(missing_ok=True)
    return target
