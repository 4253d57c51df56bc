"""Choosing an instruction set: PYENGINE_ISA, _C.set_isa and what they refuse."""

from __future__ import annotations

import pytest
from fresh_python import package_folder, printed, run_python

import pyengine as pe
from pyengine import _C

KNOWN = ["baseline", "avx2", "avx512", "avx512_bf16"]

# The extension alone, without torch: it needs none to load.
LOAD = f"""
import importlib.util, sysconfig
path = {str(package_folder() / "_C")!r} + sysconfig.get_config_var("EXT_SUFFIX")
spec = importlib.util.spec_from_file_location("pyengine._C", path)
_C = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_C)
print(_C.isa())
"""


def test_available_sets_are_known_and_start_at_the_baseline() -> None:
    available = _C.available_isas()
    assert available[0] == "baseline"
    assert available == [name for name in KNOWN if name in available]


def test_the_best_available_set_is_the_default() -> None:
    assert printed(LOAD, PYENGINE_ISA="") == _C.available_isas()[-1]


@pytest.mark.parametrize("name", _C.available_isas())
def test_environment_forces_one(name: str) -> None:
    assert printed(LOAD, PYENGINE_ISA=name) == name


def test_environment_with_an_unknown_name() -> None:
    result = run_python(LOAD, PYENGINE_ISA="sse9")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: [PYENGINE_ISA] must be one of {', '.join(KNOWN)} but is sse9"


def test_environment_with_a_set_this_machine_lacks() -> None:
    missing = [name for name in KNOWN if name not in _C.available_isas()]
    if not missing:
        pytest.skip("this CPU has every instruction set")
    result = run_python(LOAD, PYENGINE_ISA=missing[-1])
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: [PYENGINE_ISA] this CPU or build does not have {missing[-1]}"


def test_set_isa_takes_effect(isa: str) -> None:
    assert _C.isa() == isa
    assert pe.runtime.isa() == isa


def test_set_isa_with_an_unknown_name() -> None:
    before = _C.isa()
    with pytest.raises(ValueError) as caught:
        _C.set_isa("sse9")
    assert str(caught.value) == f"[PYENGINE_ISA] must be one of {', '.join(KNOWN)} but is sse9"
    assert _C.isa() == before
