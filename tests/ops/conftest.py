"""What the kernels' tests share: instruction sets, threads, ways of reading a tensor's memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `reference` and `tolerances`

import pyengine
from pyengine import _C

ISAS = _C.available_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every instruction set that this machine has."""
    before = _C.isa()
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(before)


@pytest.fixture
def restore_isa() -> Iterator[None]:
    """For tests that call _C.set_isa themselves."""
    before = _C.isa()
    yield
    _C.set_isa(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that call set_num_threads."""
    before = pyengine.get_num_threads()
    yield
    pyengine.set_num_threads(before)


@pytest.fixture(params=["exchange_api", "attributes"])
def reading(request: pytest.FixtureRequest) -> Iterator[str]:
    """Tensors read through DLPack's C exchange API, then through data_ptr() and shape."""
    used = _C.use_exchange_api(request.param == "exchange_api")
    if request.param == "exchange_api" and not used:
        pytest.skip("this torch has no DLPack C exchange API")
    yield request.param
    _C.use_exchange_api(True)
