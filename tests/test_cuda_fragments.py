"""Which lane holds what, on the host twins of the tensor cores, beside CuTe's layouts.

CUTLASS's headers come from its wheel, which is taken apart rather than installed: what it needs as
a Python package is large and not wanted here.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "native"))
from run import HERE, setup_py

WHEEL = "nvidia-cutlass==4.2.0.0"
SETUP = setup_py()
NVCC = SETUP["find_nvcc"]()


@pytest.fixture(scope="module")
def cutlass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cutlass")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"no {WHEEL}: {result.stderr}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "cutlass_library" / "source" / "include"


@pytest.mark.slow
@pytest.mark.skipif(
    NVCC is None, reason="no nvcc, whose toolkit has the headers that CuTe includes"
)
def test_fragments_are_those_of_cute(cutlass: Path, tmp_path: Path) -> None:
    toolkit = SETUP["cuda_toolkit"](NVCC) / "include"
    program = tmp_path / "cute_fragments"
    command = [
        *("g++", "-std=c++20", "-w", f"-I{cutlass}", f"-I{toolkit}", f"-I{toolkit / 'cccl'}"),
        *(f"-I{HERE}", str(HERE / "cute_fragments.cpp"), "-o", str(program)),
    ]
    subprocess.run(command, check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "0 places differ\n")
