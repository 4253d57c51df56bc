"""Atomic files and folders: either the old content or the new, whatever fails in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyengine import files
from pyengine.errors import CheckpointError
from pyengine.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    fsync_file,
    fsync_folder,
    link_or_copy,
    sha256_file,
)

EXCHANGES = [True, False]  # with the OS's one-step exchange, and without


def choose_exchange(monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_fsync_reports_what_is_missing(tmp_path: Path) -> None:
    fsync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_file(tmp_path / "none")


@pytest.mark.parametrize("data", ["text ü", b"\x00\xff"])
def test_atomic_write_replaces(data: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    atomic_write(tmp_path / "x", data)
    assert (tmp_path / "x").read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert names(tmp_path) == ["x"]


def test_atomic_file_keeps_the_old_file_when_the_block_raises(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(TypeError), atomic_file(tmp_path / "x") as file:
        file.writelines([b"new", None])  # type: ignore[list-item]
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("links", [True, False])
def test_link_or_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def elsewhere(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not links:
        monkeypatch.setattr(files.os, "link", elsewhere)
    source, target = tmp_path / "x", tmp_path / "y"
    source.write_text("new")
    target.write_text("old")
    for _ in range(2):  # the second time they are one file already
        assert link_or_copy(source, target) == target
        assert target.read_text() == "new"
        assert target.samefile(source) is links
        assert names(tmp_path) == ["x", "y"]
    with pytest.raises(CheckpointError, match=r"z must be writable but No such file or directory"):
        link_or_copy(tmp_path / "none", tmp_path / "z")
    assert names(tmp_path) == ["x", "y"]


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"x must be writable but No space left on device"):
        atomic_write(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_atomic_folder_opens_files_to_the_umask(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "weights").touch(mode=0o600)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new" / "weights").stat().st_mode & 0o777 == 0o666 & ~umask


def test_atomic_folder_makes_a_new_one_with_parents(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a" / "b") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("new")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "sub" / "x").read_text() == "new"
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_atomic_folder_replaces_the_whole_folder(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_exchange(monkeypatch, exchange)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("old")
    with atomic_folder(tmp_path / "m") as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["new"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_atomic_folder_keeps_the_old_folder_when_the_block_raises(
    error: BaseException, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("old")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "m") as folder:  # noqa: PT012
        (folder / "new").write_text("new")
        raise error
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["old"]


def test_atomic_folder_keeps_the_old_folder_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_exchange(monkeypatch, False)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with (
        pytest.raises(CheckpointError, match="m must be writable but Input/output error"),
        atomic_folder(tmp_path / "m") as folder,
    ):
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["old"]


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file")
    with pytest.raises(CheckpointError, match="it is not a folder"), atomic_folder(tmp_path / "m"):
        pass
    assert (tmp_path / "m").read_text() == "a file"
    assert names(tmp_path) == ["m"]


# Without torch, which the package imports, a process is up in 50 ms.
SAVE_FOREVER = """
import sys, types
package = types.ModuleType("pyengine")
package.__path__ = [sys.argv[3]]
sys.modules["pyengine"] = package
from pyengine.files import atomic_folder
from pyengine import files
if sys.argv[2] == "False":
    files._exchange = lambda first, second: False
n = 0
while True:
    with atomic_folder(sys.argv[1]) as folder:
        for name in "abc":
            (folder / name).write_text(str(n))
    n += 1
    print(n, flush=True)
"""


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_kill_at_any_moment_leaves_a_whole_folder(exchange: bool, tmp_path: Path) -> None:
    target = tmp_path / "m"
    for round_ in range(8):
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                SAVE_FOREVER,
                target,
                str(exchange),
                Path(files.__file__).parent,
            ],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        for _ in range(3 + round_):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if exchange:  # without it, the old folder may stand under its second name for a moment
            assert len({(target / name).read_text() for name in "abc"}) == 1
    with atomic_folder(target) as folder:
        (folder / "last").write_text("x")
    assert names(tmp_path) == ["m"]


def test_a_folder_renamed_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / "m.old-0123456789ab"
    aside.mkdir()
    (aside / "only copy").write_text("x")
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "m"):
        raise ValueError("mine")
    assert names(tmp_path) == ["m"]
    assert names(tmp_path / "m") == ["only copy"]


def test_folders_in_use_and_foreign_folders_are_not_swept(tmp_path: Path) -> None:
    for name in ("m.tmp-backup", "m.old-years", "n.tmp-0123456789ab"):
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "m") as first:
        (first / "x").write_text("1")
        with atomic_folder(tmp_path / "m") as second:
            (second / "x").write_text("2")
        assert (first / "x").read_text() == "1"
    assert (tmp_path / "m" / "x").read_text() == "1"
    assert names(tmp_path) == ["m", "m.old-years", "m.tmp-backup", "n.tmp-0123456789ab"]


def test_files_that_a_killed_process_left_are_swept_away(tmp_path):
    left = tmp_path / "a.json.tmp-0123456789ab"
    left.write_text("half")
    other = tmp_path / "a.json.tmp-notours"
    other.write_text("mine")
    atomic_write(tmp_path / "a.json", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", other.name]


def test_a_file_that_is_being_written_is_not_swept_away(tmp_path):
    with atomic_file(tmp_path / "a.json") as first:
        first.write(b"first")
        atomic_write(tmp_path / "a.json", "second")
        assert (tmp_path / "a.json").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "first"


def test_the_umask_is_left_alone(tmp_path, monkeypatch):
    def refuse(mask):
        raise AssertionError("the umask is all threads'")

    monkeypatch.setattr(os, "umask", refuse)
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("x")
        (folder / "x").chmod(0o600)
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "f" / "x").stat().st_mode == plain.stat().st_mode
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["x"]
