"""What the backward of linear and its packing refuse: one message each, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine import _C
from pyengine.ops import PackedWeight, linear, linear_pack
from pyengine.ops.linear import (
    linear_activation_backward,
    linear_backward,
    linear_pack_columns,
)

pytestmark = pytest.mark.usefixtures("reading")

BF16, F64 = torch.bfloat16, torch.float64
T, N, K = 5, 4, 6
EITHER = "float32 or bfloat16"


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def need() -> int:
    return _C.linear_backward_workspace_bytes(T, N, K, 2, False)


def good(function: str) -> dict[str, Any]:
    """Arguments that the function accepts; buffers hold ones."""
    return {
        "linear_backward": {
            **{"dy": zeros(T, N), "x": zeros(T, K), "groups": torch.tensor([0, 2, T])},
            **{"dweight": torch.ones(N, K), "dbias": torch.ones(N)},
            "workspace": torch.ones(need() // 4),
        },
        "linear_activation_backward": {
            **{"dy": zeros(T, N), "first": zeros(T, N), "second": zeros(T, N)},
            **{"dx": torch.ones(T, 2 * N), "y": torch.ones(T, N)},
        },
        "linear_pack_columns": {
            **{"weight": zeros(3, N), "data": torch.ones(K * 32, dtype=torch.int32)},
            **{"kind": "float32", "N": N, "K": K, "first": 2},
        },
        "linear_forward": {
            **{"x": zeros(T, K), "data": torch.ones(K * 32, dtype=torch.int32), "scale": None},
            **{"kind": "float32", "N": N, "K": K, "bias": None, "epilogue": "silu_gate"},
            **{"y": [torch.ones(T, N // 2)], "kept": [torch.ones(T, N // 2) for _ in range(2)]},
        },
    }[function]


WRITTEN = ("dweight", "dbias", "workspace", "dx", "data", "y", "kept")
BACKWARD, ACTIVATION = "linear_backward", "linear_activation_backward"
COLUMNS, FORWARD = "linear_pack_columns", "linear_forward"


def dtype(function: str, name: str, wrong: torch.dtype, expected: str, as_: str = "") -> Any:
    value = good(function)[name].to(wrong)
    text = str(wrong).removeprefix("torch.")
    message = f"{as_ or name} must be {expected} but is {text}"
    return function, {name: value}, TypeError, message


def value(function: str, name: str, value: Any, message: str) -> Any:
    return function, {name: value}, ValueError, message


RISE = "groups must rise from 0 to T = 5"
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    dtype(BACKWARD, "dy", F64, EITHER),
    dtype(BACKWARD, "x", F64, EITHER),
    dtype(BACKWARD, "groups", torch.int32, "int64"),
    dtype(BACKWARD, "dweight", BF16, "float32"),
    dtype(BACKWARD, "dbias", BF16, "float32"),
    value(BACKWARD, "dy", zeros(T), "dy must have shape (T, N) but got (5,)"),
    value(BACKWARD, "x", zeros(T), "x must have shape (T, K) but got (5,)"),
    value(BACKWARD, "x", zeros(4, K), "x must have shape (T, K) = (5, 6) but got (4, 6)"),
    value(BACKWARD, "dweight", zeros(K, N),
          "dweight must have shape (N, K) = (4, 6) but got (6, 4)"),
    value(BACKWARD, "dbias", zeros(K), "dbias must have shape (N,) = (4,) but got (6,)"),
    value(BACKWARD, "groups", torch.tensor([[0, 5]]),
          "groups must have shape (G + 1,) but got (1, 2)"),
    value(BACKWARD, "groups", torch.tensor([0, 1, 5, 6])[::2],
          "groups must be contiguous but its stride is 2"),
    value(BACKWARD, "groups", torch.tensor([], dtype=torch.int64), RISE),
    value(BACKWARD, "groups", torch.tensor([1, 5]), RISE),
    value(BACKWARD, "groups", torch.tensor([0, 4]), RISE),
    value(BACKWARD, "groups", torch.tensor([0, 3, 2, 5]), RISE),
    value(BACKWARD, "groups", torch.tensor([0, 2**40, 5]), RISE),
    value(BACKWARD, "groups", torch.tensor([0, -1, 5]), RISE),
    value(BACKWARD, "dy", zeros(N, T).T,
          "dy must have a contiguous last dimension but its stride is 5"),
    value(BACKWARD, "x", zeros(K, T).T,
          "x must have a contiguous last dimension but its stride is 5"),
    value(BACKWARD, "dweight", zeros(K, N).T,
          "dweight must have a contiguous last dimension but its stride is 4"),
    value(BACKWARD, "dbias", zeros(2 * N)[::2], "dbias must be contiguous but its stride is 2"),
    value(BACKWARD, "workspace", zeros(9, 999),
          "workspace must have shape (bytes,) but got (9, 999)"),
    value(BACKWARD, "workspace", zeros(2 * need())[::2],
          "workspace must be contiguous but its stride is 2"),
    value(BACKWARD, "workspace", zeros(need() // 4 - 1),
          f"workspace must have {need()} bytes but has {need() - 4}"),
    dtype(ACTIVATION, "dy", F64, EITHER),
    dtype(ACTIVATION, "first", F64, EITHER, "kept"),
    dtype(ACTIVATION, "second", BF16, "float32", "kept"),
    dtype(ACTIVATION, "dx", F64, EITHER),
    dtype(ACTIVATION, "y", BF16, "float32"),
    value(ACTIVATION, "y", zeros(T, 3), "y must have shape (T, N) = (5, 4) but got (5, 3)"),
    value(ACTIVATION, "dy", zeros(T), "dy must have shape (T, N) but got (5,)"),
    value(ACTIVATION, "first", zeros(T, 3), "kept must have shape (T, N) = (5, 4) but got (5, 3)"),
    value(ACTIVATION, "second", zeros(4, N), "kept must have shape (T, N) = (5, 4) but got (4, 4)"),
    value(ACTIVATION, "dx", zeros(T, N), "dx must have shape (T, 2 N) = (5, 8) but got (5, 4)"),
    value(ACTIVATION, "second", None, "dx must have shape (T, N) = (5, 4) but got (5, 8)"),
    *(value(ACTIVATION, name, zeros(columns, T).T,
            f"{as_} must have a contiguous last dimension but its stride is 5")
      for name, as_, columns in (("dy", "dy", N), ("first", "kept", N), ("second", "kept", N),
                                 ("dx", "dx", 2 * N))),
    dtype(COLUMNS, "weight", F64, EITHER),
    dtype(COLUMNS, "data", torch.int64, "int32"),
    value(COLUMNS, "weight", zeros(N), "weight must have shape (rows, N) but got (4,)"),
    value(COLUMNS, "weight", zeros(3, 5),
          "weight must have shape (rows, N) = (3, 4) but got (3, 5)"),
    value(COLUMNS, "weight", zeros(N, 3).T,
          "weight must have a contiguous last dimension but its stride is 3"),
    value(COLUMNS, "kind", "int8",
          "kind must be 'float32' or 'bfloat16' for columns but is 'int8'"),
    value(COLUMNS, "kind", "int4", "kind must be 'float32', 'bfloat16' or 'int8' but is 'int4'"),
    value(COLUMNS, "K", 0, "N and K must be >= 1 but are 4 and 0"),
    value(COLUMNS, "data", torch.ones(9, dtype=torch.int32),
          "data must have shape (packed words,) = (192,) but got (9,)"),
    value(COLUMNS, "first", -1, "weight of 3 rows from element -1 must fit K = 6"),
    value(COLUMNS, "first", 4, "weight of 3 rows from element 4 must fit K = 6"),
    value(FORWARD, "kept", [zeros(T, 2)],
          "kept must be empty, or what the activation takes, but is 1 tensors"),
    (FORWARD, {"epilogue": "store", "y": [torch.ones(T, N)]}, ValueError,
     "kept must be empty, or what the activation takes, but is 2 tensors"),
    (FORWARD, {"epilogue": "gelu_tanh", "y": [torch.ones(T, N)]}, ValueError,
     "kept must be empty, or what the activation takes, but is 2 tensors"),
    value(FORWARD, "kept", [zeros(T, 2), zeros(T, 3)],
          "kept must have shape (T, columns) = (5, 2) but got (5, 3)"),
    value(FORWARD, "kept", [zeros(T, 2), zeros(2, T).T],
          "kept must have a contiguous last dimension but its stride is 5"),
    (FORWARD, {"kept": [zeros(T, 2), zeros(T, 2, dtype=F64)]}, TypeError,
     "kept must be float32 or bfloat16 but is float64"),
]  # fmt: skip


@pytest.mark.parametrize("function", [BACKWARD, ACTIVATION, COLUMNS, FORWARD])
def test_good_arguments_are_accepted(function: str) -> None:
    arguments = good(function)
    assert getattr(_C, function)(**arguments) is None


@pytest.mark.parametrize("index", range(len(BAD)), ids=lambda i: f"{BAD[i][0]}-{BAD[i][3][:40]}")
def test_bad_arguments(index: int) -> None:
    function, changes, error, message = BAD[index]
    arguments = {**good(function), **changes}
    with pytest.raises(error) as caught:
        getattr(_C, function)(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == f"[linear] {message}"
    for name in set(WRITTEN) & set(arguments) - set(changes):
        for tensor in [arguments[name]] if isinstance(arguments[name], Tensor) else arguments[name]:
            assert bool((tensor == 1).all()), f"{name} was written"


REQUIRED = {
    BACKWARD: ("dy", "x", "groups", "workspace"),
    ACTIVATION: ("dy", "first", "dx"),
    COLUMNS: ("weight", "data"),
}


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, ns in REQUIRED.items() for n in ns])
def test_tensors_are_required(function: str, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        getattr(_C, function)(**{**good(function), name: None})
    as_ = "kept" if name == "first" else name
    assert str(caught.value) == f"[linear] {as_} must be a torch.Tensor but is NoneType"


P: PackedWeight = linear_pack_columns(zeros(K, N), "float32")
G: PackedWeight = linear_pack([zeros(4, 6)] * 2, "float32", gated=True)
GROUPS = torch.tensor([0, T])

PUBLIC: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: linear_backward(zeros(T), zeros(T, K), GROUPS, None),
        ValueError,
        "dy, x and groups must have 2, 2 and 1 dimensions but have shapes (5,), (5, 6) and (2,)",
    ),
    (
        lambda: linear_backward(zeros(T, N), zeros(T, K), GROUPS[:0], zeros(N, K)),
        ValueError,
        RISE,
    ),
    (
        lambda: linear_backward(zeros(0, N), zeros(0, 4096), GROUPS[:0], zeros(N, 4096)),
        ValueError,
        "groups must rise from 0 to T = 0",
    ),
    (
        lambda: linear_activation_backward(zeros(T, N), []),
        ValueError,
        "kept must be one or two tensors but is 0",
    ),
    (
        lambda: linear_activation_backward(zeros(T, N), [zeros(T, N)] * 3),
        ValueError,
        "kept must be one or two tensors but is 3",
    ),
    (
        lambda: linear_pack_columns([zeros(2, 3), zeros(2, 4)], "float32"),
        ValueError,
        "weights must be matrices of equal K but have shapes [(2, 3), (2, 4)]",
    ),
    (
        lambda: linear_pack_columns(zeros(K, N), "int8"),
        ValueError,
        "kind must be 'float32' or 'bfloat16' for columns but is 'int8'",
    ),
    (
        lambda: linear_pack_columns(zeros(N, K), "float32", out=P),
        ValueError,
        "out must be a float32 matrix of shape (6, 4), gated=False, "
        "but is float32 of shape (4, 6), gated=False",
    ),
    (
        lambda: linear_pack_columns(zeros(6, 8), "float32", out=G),
        ValueError,
        "out must be a float32 matrix of shape (8, 6), gated=False, "
        "but is float32 of shape (8, 6), gated=True",
    ),
    (
        lambda: linear(zeros(T, K), P, kept=[zeros(T, N)]),
        ValueError,
        "kept must be empty, or what the activation takes, but is 1 tensors",
    ),
]


@pytest.mark.parametrize("index", range(len(PUBLIC)), ids=lambda i: PUBLIC[i][2][:40])
def test_python_functions_raise_the_same_errors(index: int) -> None:
    run, error, message = PUBLIC[index]
    with pytest.raises(error, match=f"^{re.escape(f'[linear] {message}')}$"):
        run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "int8"}, "kind must be 'float32' or 'bfloat16' for columns but is 'int8'"),
        ({"N": 3, "gated": True}, "N of a gated pair must be even but is 3"),
        ({"N": 40}, "data must have shape (packed words,) = (320,) but got (160,)"),
        ({"out": torch.zeros(9, dtype=torch.int32)},
         "out must have shape (packed words,) = (128,) but got (9,)"),
        ({"K": 0}, "N and K must be >= 1 but are 4 and 0"),
    ],
)  # fmt: skip
def test_transposing_names_what_it_refuses(arguments: dict[str, object], message: str) -> None:
    given = {
        "data": torch.zeros(160, dtype=torch.int32),
        "out": torch.zeros(128, dtype=torch.int32),
        "kind": "float32",
        "N": 4,
        "K": 5,
        "gated": False,
    }
    with pytest.raises(ValueError) as caught:
        _C.linear_transpose(**given | arguments)
    assert str(caught.value) == f"[linear] {message}"
