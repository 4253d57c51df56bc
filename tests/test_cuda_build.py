"""The .cu files, compiled for two architectures without a GPU: no warning, no spill, no atomics, no
allocation.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
from run import ROOT, setup_py

SOURCES = sorted((ROOT / "cuda").glob("**/*.cu"))
NVCC = setup_py()["find_nvcc"]()
FAKE_NVCC = """#!/bin/sh
case "$1" in
    --list-gpu-arch) echo compute_80; echo compute_90 ;;
    --dryrun) echo '#$ TOP={top}' >&2 ;;
esac
"""

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH or in CUDA_HOME")


@pytest.fixture
def setup() -> Any:
    return SimpleNamespace(**setup_py())


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvcc that knows sm_80 and sm_90 and nothing else, in CUDA_HOME."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(FAKE_NVCC.replace("{top}", str(tmp_path / "toolkit" / "bin" / "..")))
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("PYENGINE_CUDA_ARCHS", raising=False)
    return nvcc


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_cuda_source_compiles_clean(setup: Any, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "kernel.o"
    command = [
        *(str(NVCC), *setup.NVCC_FLAGS, "-Werror", "all-warnings", "-Xptxas", "-v"),
        *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)),
        *("-keep", "-keep-dir", str(tmp_path)),
        *(f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'cuda'}"),
        *("-c", str(source), "-o", str(target)),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr

    # Registers hold everything: a spill is a slow kernel.
    spills = re.findall(r"(\d+) bytes spill stores", result.stderr)
    assert spills or source.parent.name == "runtime"
    assert set(spills) <= {"0"}

    # Atomics would add in the order of arrival. bar.red, a barrier that votes, is none.
    ptx = "".join(p.read_text() for p in tmp_path.glob("*.ptx"))
    assert ".entry" in ptx or not spills
    assert re.findall(r"(?<![.\w])(?:atom|red)\.\S+", ptx) == []

    # Kernels and launchers neither allocate nor wait nor know torch; a session's device may.
    if source.parent.name == "runtime":
        return
    symbols = subprocess.run(["nm", "-uC", str(target)], capture_output=True, text=True, check=True)
    needed = [line.split(maxsplit=1)[1] for line in symbols.stdout.splitlines()]
    forbidden = r"torch|c10|at::|operator new|alloc|Synchronize"
    assert [name for name in needed if re.search(forbidden, name)] == []


def test_cuda_arithmetic_is_fused_only_where_the_source_says_so(setup: Any) -> None:
    assert "-fmad=false" in setup.NVCC_FLAGS
    assert "-ffp-contract=off" in setup.CXX_FLAGS


def test_default_architectures_are_those_that_nvcc_knows(setup: Any, fake_nvcc: Path) -> None:
    assert setup.cuda_archs(fake_nvcc) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_asked_architectures_are_used(
    setup: Any, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENGINE_CUDA_ARCHS", "80")
    assert setup.cuda_archs(fake_nvcc) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]


def test_unknown_architecture_is_refused(
    setup: Any, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENGINE_CUDA_ARCHS", "90;77")
    message = r"PYENGINE_CUDA_ARCHS=90;77: .*nvcc does not know \['77'\] but compute_80 compute_90"
    with pytest.raises(SystemExit, match=message):
        setup.cuda_archs(fake_nvcc)


def test_toolkit_is_what_nvcc_says(setup: Any, fake_nvcc: Path, tmp_path: Path) -> None:
    assert setup.cuda_toolkit(fake_nvcc) == tmp_path / "toolkit"


def test_nvcc_without_a_toolkit_is_refused(setup: Any, fake_nvcc: Path) -> None:
    fake_nvcc.write_text("#!/bin/sh\necho broken >&2\n")
    with pytest.raises(SystemExit, match=r"nvcc --dryrun must name its toolkit \(TOP=\) but print"):
        setup.cuda_toolkit(fake_nvcc)


@needs_nvcc
def test_toolkit_has_the_runtime(setup: Any) -> None:
    toolkit = setup.cuda_toolkit(NVCC)
    assert (toolkit / "include" / "cuda_runtime_api.h").is_file()
    assert any((toolkit / lib / "libcudart_static.a").is_file() for lib in ("lib64", "lib"))


def test_cuda_switch_takes_0_and_1(
    setup: Any, fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENGINE_CUDA", "1")
    assert setup.want_cuda() is True
    monkeypatch.setenv("PYENGINE_CUDA", "0")
    assert setup.want_cuda() is False
    monkeypatch.setenv("PYENGINE_CUDA", "yes")
    with pytest.raises(SystemExit, match="PYENGINE_CUDA must be 0, 1 or unset but is 'yes'"):
        setup.want_cuda()


def test_cuda_without_nvcc_is_refused(
    setup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENGINE_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="PYENGINE_CUDA=1 but nvcc was not found"):
        setup.want_cuda()
