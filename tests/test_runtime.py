"""The process once pyengine is imported: one OpenMP runtime, no libtorch linked, shared threads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator

import pytest
import torch
from fresh_python import package_folder, printed

import pyengine as pe
from pyengine import _C
from pyengine.errors import ConfigError

EXTENSION = package_folder() / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"

COUNT_LIBGOMP = """
{imports}
x = torch.randn(4096, 64)
(x @ x.T).sum()
pe.ops.rms_norm(x, torch.ones(64), 1e-5)
with open("/proc/self/maps") as maps:
    runtimes = ("libgomp", "libomp", "libiomp")
    paths = {{line.split()[-1] for line in maps if any(name in line for name in runtimes)}}
print(len(paths), *paths)
"""


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = pe.get_num_threads()
    yield
    pe.set_num_threads(before)


@pytest.mark.parametrize(
    "imports", ["import pyengine as pe\nimport torch", "import torch\nimport pyengine as pe"]
)
def test_one_openmp_runtime_is_mapped(imports: str) -> None:
    """Whichever is imported first, torch and our kernels share one pool of threads."""
    count, *paths = printed(COUNT_LIBGOMP.format(imports=imports)).split()
    assert int(count) == 1, paths


def test_extension_links_no_libtorch() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf, from binutils")
    listing = subprocess.run([readelf, "-d", EXTENSION], capture_output=True, text=True, check=True)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", listing.stdout)
    system = (
        "libstdc++",
        "libm",
        "libgomp",
        "libgcc_s",
        "libc",
        "libdl",
        "librt",
        "libpthread",
        "ld-linux",
    )
    assert any(name.startswith("libgomp.so") for name in needed)
    assert [name for name in needed if not name.startswith(system)] == []
    assert not re.search(r"\((RPATH|RUNPATH)\)", listing.stdout)


def test_import_needs_no_heavy_package() -> None:
    """transformers and its kin are for tests; plotting and Parquet are optional extras."""
    code = "import sys, pyengine; print(*(sys.modules.keys() & {names!r}))"
    names = {
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "matplotlib",
        "pyarrow",
        "vaderSentiment",
    }
    assert printed(code.format(names=names)) == ""


def test_set_num_threads(restore_threads: None) -> None:
    for n in (1, 2, 5):
        pe.set_num_threads(n)
        assert (pe.get_num_threads(), _C.num_threads(), torch.get_num_threads()) == (n, n, n)


@pytest.mark.parametrize("n", [0, -1])
def test_set_num_threads_below_one(n: int) -> None:
    before = pe.get_num_threads()
    with pytest.raises(ConfigError) as caught:
        pe.set_num_threads(n)
    assert str(caught.value) == f"[set_num_threads] n must be >= 1 but is {n}"
    with pytest.raises(ValueError) as caught_below:
        _C.set_num_threads(n)
    assert str(caught_below.value) == f"[set_num_threads] n must be >= 1 but is {n}"
    assert pe.get_num_threads() == before


def test_threads_of_torch_are_taken_over_at_import() -> None:
    code = (
        "import torch; torch.set_num_threads(3); import pyengine as pe; print(pe.get_num_threads())"
    )
    assert printed(code) == "3"
