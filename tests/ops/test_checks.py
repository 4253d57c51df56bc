"""What bad arguments get: every check in bindings/, through both ways of reading a tensor."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import pyengine as pe
from pyengine import _C

pytestmark = pytest.mark.usefixtures("reading")

INT64 = torch.int64
N, D, V = 4, 8, 20


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def good(function: str) -> dict[str, Any]:
    """Arguments that the function accepts."""
    ids = torch.arange(N)
    forward = _C.linear_logprob_workspace_bytes(N, D, V, "forward") // 4
    backward = _C.linear_logprob_workspace_bytes(N, D, V, "backward") // 4
    head = {"hidden": zeros(N, D), "weight": zeros(V, D), "targets": ids, "lse": zeros(N)}
    return {
        "rms_norm_forward": {
            **{
                "x": zeros(N, D),
                "weight": zeros(D),
                "eps": 1e-5,
                "y": zeros(N, D),
                "rstd": zeros(N),
            },
        },
        "rms_norm_backward": {
            **{"dy": zeros(N, D), "x": zeros(N, D), "weight": zeros(D), "rstd": zeros(N)},
            **{"dx": zeros(N, D), "dweight": zeros(D)},
        },
        "linear_logprob_forward": {**head, "logprob": zeros(N), "workspace": zeros(forward)},
        "linear_logprob_backward": {
            **head,
            **{"dlogprob": zeros(N), "dhidden": zeros(N, D), "dweight": zeros(V, D)},
            **{"workspace": zeros(backward), "direction": zeros(N, D)},
        },
        "philox_uniform": {
            **{"seed": ids, "request": ids, "sample": ids, "position": ids},
            "u": torch.zeros(N, dtype=torch.float64),
        },
    }[function]


FUNCTIONS = (
    *("rms_norm_forward", "rms_norm_backward"),
    *("linear_logprob_forward", "linear_logprob_backward", "philox_uniform"),
)
TENSORS = [(f, name) for f in FUNCTIONS for name, value in good(f).items() if name != "eps"]
OPTIONAL = {
    ("rms_norm_forward", "rstd"),
    ("rms_norm_backward", "dx"),
    ("rms_norm_backward", "dweight"),
}
OPTIONAL |= {("linear_logprob_backward", "dhidden"), ("linear_logprob_backward", "dweight")}


def op(function: str) -> str:
    return function.removesuffix("_forward").removesuffix("_backward")


def refuses(function: str, error: type[Exception], message: str, **changes: Any) -> None:
    """The call with `changes` raises exactly this error."""
    with pytest.raises(error) as caught:
        getattr(_C, function)(**{**good(function), **changes})
    assert type(caught.value) is error
    assert str(caught.value) == f"[{op(function)}] {message}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_good_arguments_are_accepted(function: str) -> None:
    assert getattr(_C, function)(**good(function)) is None


class Subclass(torch.Tensor):
    pass


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.zeros(N, D)


NOT_TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "numpy": (lambda: np.zeros((N, D), np.float32), "numpy.ndarray"),
    "list": (lambda: [[0.0] * D] * N, "list"),
    "int": (lambda: 3, "int"),
    "FakeTensor": (fake, "FakeTensor"),
    "subclass": (lambda: torch.zeros(N, D).as_subclass(Subclass), "Subclass"),
}


@pytest.mark.parametrize("kind", NOT_TENSORS)
@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_not_a_plain_tensor(function: str, name: str, kind: str) -> None:
    make, type_name = NOT_TENSORS[kind]
    refuses(
        function, TypeError, f"{name} must be a torch.Tensor but is {type_name}", **{name: make()}
    )


@pytest.mark.parametrize(("function", "name"), TENSORS)
def test_none(function: str, name: str) -> None:
    if (function, name) in OPTIONAL:
        assert getattr(_C, function)(**{**good(function), name: None}) is None
    else:
        refuses(
            function, TypeError, f"{name} must be a torch.Tensor but is NoneType", **{name: None}
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64, torch.bool, torch.int8])
@pytest.mark.parametrize(("function", "name"), [t for t in TENSORS if t[1] != "workspace"])
def test_dtype_no_kernel_knows(function: str, name: str, dtype: torch.dtype) -> None:
    value = good(function)[name].to(dtype)
    refuses(function, TypeError, f"{name} has unsupported dtype {dtype}", **{name: value})


def allowed_dtypes(function: str, name: str) -> str:
    if name in ("targets", "seed", "request", "sample", "position"):
        return "int64"
    if name == "u":
        return "float64"
    if name in ("x", "y", "dy", "hidden", "weight"):
        return "float32 or bfloat16"
    return "float32"


@pytest.mark.parametrize(("function", "name"), [t for t in TENSORS if t[1] != "workspace"])
def test_dtype_of_another_argument(function: str, name: str) -> None:
    value = good(function)[name].to(torch.int32)
    message = f"{name} must be {allowed_dtypes(function, name)} but is int32"
    refuses(function, TypeError, message, **{name: value})


def test_dx_has_the_dtype_of_x() -> None:
    changes = {"dx": torch.zeros(N, D, dtype=torch.bfloat16)}
    refuses("rms_norm_backward", TypeError, "dx must be float32 but is bfloat16", **changes)


SHAPES = [
    ("rms_norm_forward", "x", (N, D, 1), "(N, D) but got (4, 8, 1)"),
    ("rms_norm_forward", "x", (), "(N, D) but got ()"),
    ("rms_norm_forward", "weight", (D + 1,), "(D,) = (8,) but got (9,)"),
    ("rms_norm_forward", "weight", (1, D), "(D,) = (8,) but got (1, 8)"),
    ("rms_norm_forward", "y", (N + 1, D), "(N, D) = (4, 8) but got (5, 8)"),
    ("rms_norm_forward", "rstd", (N + 1,), "(N,) = (4,) but got (5,)"),
    ("rms_norm_backward", "x", (N * D,), "(N, D) but got (32,)"),
    ("rms_norm_backward", "dy", (N, D - 1), "(N, D) = (4, 8) but got (4, 7)"),
    ("rms_norm_backward", "weight", (D - 1,), "(D,) = (8,) but got (7,)"),
    ("rms_norm_backward", "rstd", (N, 1), "(N,) = (4,) but got (4, 1)"),
    ("rms_norm_backward", "dx", (D, N), "(N, D) = (4, 8) but got (8, 4)"),
    ("rms_norm_backward", "dweight", (D, 1), "(D,) = (8,) but got (8, 1)"),
    ("linear_logprob_forward", "hidden", (N, D, 1), "(T, D) but got (4, 8, 1)"),
    ("linear_logprob_forward", "weight", (V * D,), "(V, D) but got (160,)"),
    ("linear_logprob_forward", "weight", (V, D + 1), "(V, D) = (20, 8) but got (20, 9)"),
    ("linear_logprob_forward", "logprob", (N - 1,), "(T,) = (4,) but got (3,)"),
    ("linear_logprob_forward", "lse", (N, N), "(T,) = (4,) but got (4, 4)"),
    ("linear_logprob_forward", "workspace", (10, 10), "(bytes,) but got (10, 10)"),
    ("linear_logprob_backward", "hidden", (N,), "(T, D) but got (4,)"),
    ("linear_logprob_backward", "weight", (V, D - 1), "(V, D) = (20, 8) but got (20, 7)"),
    ("linear_logprob_backward", "dlogprob", (N, 1), "(T,) = (4,) but got (4, 1)"),
    ("linear_logprob_backward", "lse", (0,), "(T,) = (4,) but got (0,)"),
    ("linear_logprob_backward", "dhidden", (N, V), "(T, D) = (4, 8) but got (4, 20)"),
    ("linear_logprob_backward", "dweight", (D, V), "(V, D) = (20, 8) but got (8, 20)"),
    ("linear_logprob_backward", "direction", (N, V), "(T, D) = (4, 8) but got (4, 20)"),
    ("linear_logprob_backward", "workspace", (10, 10), "(bytes,) but got (10, 10)"),
]


@pytest.mark.parametrize(("function", "name", "shape", "message"), SHAPES)
def test_shape(function: str, name: str, shape: tuple[int, ...], message: str) -> None:
    refuses(function, ValueError, f"{name} must have shape {message}", **{name: torch.zeros(shape)})


@pytest.mark.parametrize("function", ["linear_logprob_forward", "linear_logprob_backward"])
def test_shape_of_targets(function: str) -> None:
    refuses(
        function,
        ValueError,
        "targets must have shape (T,) = (4,) but got (5,)",
        targets=torch.zeros(5, dtype=INT64),
    )


@pytest.mark.parametrize("name", ["seed", "request", "sample", "position"])
def test_shape_of_philox_keys(name: str) -> None:
    refuses(
        "philox_uniform",
        ValueError,
        f"{name} must have shape (N,) = (4,) but got (3,)",
        **{name: torch.zeros(3, dtype=INT64)},
    )


def test_shape_of_philox_output() -> None:
    u = torch.zeros(2, 2, dtype=torch.float64)
    refuses("philox_uniform", ValueError, "u must have shape (N,) but got (2, 2)", u=u)


def test_more_than_eight_dimensions() -> None:
    x = torch.zeros((1,) * 9)
    refuses("rms_norm_forward", TypeError, "x has 9 dimensions, more than 8", x=x)


def test_no_columns_to_normalise() -> None:
    changes = {"x": zeros(N, 0), "y": zeros(N, 0), "weight": zeros(0)}
    refuses("rms_norm_forward", ValueError, "x must have D >= 1 but got shape (4, 0)", **changes)


def test_no_hidden_size() -> None:
    changes = {"hidden": zeros(N, 0), "weight": zeros(V, 0)}
    message = "hidden must have D >= 1 but got shape (4, 0)"
    refuses("linear_logprob_forward", ValueError, message, **changes)


def test_no_vocabulary() -> None:
    message = "weight must have V >= 1 but got shape (0, 8)"
    refuses("linear_logprob_forward", ValueError, message, weight=zeros(0, D))


@pytest.mark.parametrize(("eps", "text"), [(-1.0, "-1.000000"), (float("nan"), "nan")])
def test_eps(eps: float, text: str) -> None:
    refuses("rms_norm_forward", ValueError, f"eps must be >= 0 but is {text}", eps=eps)


MATRICES = [
    *(("rms_norm_forward", name, D) for name in ("x", "y")),
    *(("rms_norm_backward", name, D) for name in ("dy", "x", "dx")),
    *((f"linear_logprob_{way}", "hidden", D) for way in ("forward", "backward")),
    *((f"linear_logprob_{way}", "weight", D) for way in ("forward", "backward")),
    *(("linear_logprob_backward", name, D) for name in ("dhidden", "dweight", "direction")),
]


@pytest.mark.parametrize(("function", "name", "columns"), MATRICES)
def test_last_dimension_must_be_contiguous(function: str, name: str, columns: int) -> None:
    rows = good(function)[name].shape[0]
    message = f"{name} must have a contiguous last dimension but its stride is {rows}"
    refuses(function, ValueError, message, **{name: zeros(columns, rows).T})


VECTORS = [t for t in TENSORS if good(t[0])[t[1]].dim() == 1 and t[1] != "workspace"]


@pytest.mark.parametrize(("function", "name"), VECTORS)
def test_vectors_must_be_contiguous(function: str, name: str) -> None:
    value = good(function)[name].repeat_interleave(3)[::3]
    refuses(function, ValueError, f"{name} must be contiguous but its stride is 3", **{name: value})


@pytest.mark.parametrize("function", ["linear_logprob_forward", "linear_logprob_backward"])
@pytest.mark.parametrize("bad", [V, -1, 2**40, -(2**63)])
@pytest.mark.parametrize("index", [0, 3])
def test_target_out_of_range(function: str, index: int, bad: int) -> None:
    targets = torch.arange(N)
    targets[index] = bad
    message = f"targets must be in [0, 20) but targets[{index}] = {bad}"
    refuses(function, ValueError, message, targets=targets)


@pytest.mark.parametrize("name", ["sample", "position"])
@pytest.mark.parametrize("bad", [-1, 2**32, 2**32 + 3, -(2**63)])
def test_id_beyond_32_bits(name: str, bad: int) -> None:
    ids = torch.arange(N)
    ids[2] = bad
    message = f"{name} must be in [0, 4294967296) but {name}[2] = {bad}"
    refuses("philox_uniform", ValueError, message, **{name: ids})
    ids[2] = 2**32 - 1
    _C.philox_uniform(**{**good("philox_uniform"), name: ids})


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_workspace_too_small(way: str) -> None:
    pe_threads = pe.get_num_threads()
    pe.set_num_threads(1)
    try:
        need = _C.linear_logprob_workspace_bytes(N, D, V, way)
        message = f"workspace must have {need} bytes but has {need - 4}"
        workspace = zeros(need // 4 - 1)
        refuses(f"linear_logprob_{way}", ValueError, message, workspace=workspace)
    finally:
        pe.set_num_threads(pe_threads)


def test_memory_that_was_freed() -> None:
    x = zeros(N, D)
    x.untyped_storage().resize_(0)
    refuses("rms_norm_forward", TypeError, "x has no memory behind it", x=x)


UNREADABLE = {
    "meta": lambda: torch.zeros(N, D, device="meta"),
    "sparse": lambda: torch.zeros(N, D).to_sparse(),
    "negated view": lambda: torch._neg_view(torch.ones(N, D)),  # memory holds ones, values are -1
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_memory_that_is_not_the_values(kind: str, reading: str) -> None:
    with pytest.raises(TypeError, match=r"^\[rms_norm\] x "):
        _C.rms_norm_forward(**{**good("rms_norm_forward"), "x": UNREADABLE[kind]()})


def test_tensors_that_require_grad_and_parameters_are_borrowed() -> None:
    x, weight = torch.ones(N, D, requires_grad=True), torch.nn.Parameter(torch.full((D,), 2.0))
    y = torch.empty(N, D)
    _C.rms_norm_forward(x, weight, 0.0, y, None)
    assert torch.equal(y, torch.full((N, D), 2.0))


def test_python_functions_raise_the_same_errors() -> None:
    with pytest.raises(
        ValueError, match=re.escape("weight must have shape (D,) = (8,) but got (7,)")
    ):
        pe.ops.rms_norm(zeros(N, D), zeros(D - 1), 1e-5)
    with pytest.raises(ValueError, match=re.escape("targets[2] = 20")):
        pe.ops.linear_logprob(zeros(N, D), zeros(V, D), torch.tensor([0, 1, 20, 3]))
    with pytest.raises(
        TypeError, match=re.escape("[rms_norm] x has unsupported dtype torch.float16")
    ):
        pe.ops.rms_norm(zeros(N, D).half(), zeros(D), 1e-5)
    with pytest.raises(TypeError, match="targets must be int64 but is int32"):
        pe.ops.linear_logprob(zeros(N, D), zeros(V, D), torch.zeros(N, dtype=torch.int32))
    with pytest.raises(ValueError, match="hidden must have a contiguous last dimension"):
        pe.ops.linear_logprob(zeros(D, N).T, zeros(V, D), torch.arange(N))
    with pytest.raises(
        ValueError, match=re.escape("weight must have 2 dimensions but got shape (8,)")
    ):
        pe.ops.linear_logprob(zeros(N, D), zeros(D), torch.arange(N))


PUBLIC: dict[str, tuple[Callable[..., Any], dict[str, Tensor]]] = {
    "rms_norm": (
        lambda x, weight: pe.ops.rms_norm(x, weight, 1e-5),
        {"x": zeros(N, D), "weight": zeros(D)},
    ),
    "linear_logprob": (
        pe.ops.linear_logprob,
        {"hidden": zeros(N, D), "weight": zeros(V, D), "targets": torch.arange(N)},
    ),
    "philox_uniform": (
        pe.ops.philox_uniform,
        {name: torch.arange(N) for name in ("seed", "request", "sample", "position")},
    ),
}


@pytest.mark.parametrize(("op", "name"), [(f, name) for f in PUBLIC for name in PUBLIC[f][1]])
@pytest.mark.parametrize("kind", ["numpy.ndarray", "list", "NoneType"])
def test_python_functions_refuse_what_is_no_tensor(op: str, name: str, kind: str) -> None:
    function, arguments = PUBLIC[op]
    value = arguments[name]
    bad = {"numpy.ndarray": value.numpy(), "list": value.tolist(), "NoneType": None}[kind]
    with pytest.raises(TypeError) as caught:
        function(**{**arguments, name: bad})
    assert str(caught.value) == f"[{op}] {name} must be a torch.Tensor but is {kind}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_random_arguments_never_crash(function: str) -> None:
    """Any mixture of odd tensors is either accepted or refused with TypeError or ValueError."""
    rng = np.random.default_rng(0)
    odd = [
        *(zeros(N, D), zeros(D), zeros(N), zeros(0), zeros(N, 0), zeros(D, N).T, torch.zeros(())),
        *(torch.arange(N), torch.full((N,), -1), torch.zeros(N, D, dtype=torch.bfloat16), fake()),
        *(zeros(N, D).expand(3, N, D), zeros(1).expand(N), None, 3, "x", zeros(N, D).half()),
    ]
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(150):
        arguments = good(function)
        for name in rng.choice(list(arguments), size=rng.integers(1, 4)):
            arguments[name] = odd[rng.integers(len(odd))]
        if "workspace" in arguments:  # a wrong size is refused, so any of them may be tried too
            arguments["workspace"] = zeros(1 << 20) if rng.random() < 0.8 else zeros(3)
        try:
            getattr(_C, function)(**arguments)
            outcomes["accepted"] += 1
        except (TypeError, ValueError):
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100
