"""What sample's bad arguments get: the binding's checks, one by one."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import LogitAdjustments, sample

pytestmark = pytest.mark.usefixtures("reading")

R, V, B, M, K, N = 3, 10, 4, 2, 2, 5
F64, I64, I32 = torch.float64, torch.int64, torch.int32


def good() -> dict[str, Any]:
    """Arguments that the binding accepts."""
    return {
        "logits": [torch.zeros(R, V), torch.zeros(R, V)],
        "coefficients": [0.5, 0.5],
        "rows": torch.tensor([0, 1, 2, 2]),
        "uniform": torch.full((B,), 0.5, dtype=F64),
        "temperature": torch.ones(B, dtype=F64),
        "top_k": torch.zeros(B, dtype=I64),
        "top_p": torch.ones(B, dtype=F64),
        "min_p": torch.zeros(B, dtype=F64),
        "adjust_offsets": torch.tensor([0, 2, 2, 4, 5]),
        "adjust_ids": torch.tensor([1, 3, 0, 9, 4]),
        "adjust_repetition": torch.ones(N),
        "adjust_subtract": torch.zeros(N),
        "adjust_bias": torch.zeros(N),
        "token_ids": torch.zeros(B, dtype=I64),
        "logprobs": torch.zeros(B, M),
        "sampling_logprobs": torch.zeros(B),
        "kept_mass": torch.zeros(B),
        "entropy": torch.zeros(B),
        "top_ids": torch.zeros(B, K, dtype=I64),
        "top_logprobs": torch.zeros(B, K),
        "status": torch.zeros(B, dtype=I32),
        "workspace": torch.zeros(_C.sample_workspace_bytes(V) // 8 + 1, dtype=F64),
    }


def refuses(error: type[Exception], message: str, **changes: Any) -> None:
    with pytest.raises(error) as caught:
        _C.sample(**{**good(), **changes})
    assert type(caught.value) is error
    assert str(caught.value) == f"[sample] {message}"


TENSORS = [name for name, value in good().items() if isinstance(value, Tensor)]
OPTIONAL = {"entropy"}
CHECKED_DTYPE = [name for name in TENSORS if name != "workspace"]


def test_good_arguments_are_accepted() -> None:
    assert _C.sample(**good()) is None
    without = dict.fromkeys([name for name in TENSORS if name.startswith("adjust_")])
    assert _C.sample(**{**good(), **without, "top_ids": None, "top_logprobs": None}) is None


@pytest.mark.parametrize("name", TENSORS)
def test_not_a_tensor(name: str) -> None:
    refuses(TypeError, f"{name} must be a torch.Tensor but is int", **{name: 3})
    if name in OPTIONAL:
        assert _C.sample(**{**good(), name: None}) is None


@pytest.mark.parametrize("name", CHECKED_DTYPE)
def test_dtype(name: str) -> None:
    value = good()[name]
    allowed = {F64: "float64", I64: "int64", I32: "int32", torch.float32: "float32"}[value.dtype]
    message = f"{name} must be {allowed} but is bfloat16"
    refuses(TypeError, message, **{name: value.to(torch.bfloat16)})


@pytest.mark.parametrize("name", CHECKED_DTYPE)
def test_shape(name: str) -> None:
    """Each tensor with an element too many, or of a dimension too many."""
    value = good()[name]
    with pytest.raises(ValueError, match=r"^\[sample\] \w+ must have shape \("):
        _C.sample(**{**good(), name: torch.cat([value, value[:1]])})
    with pytest.raises(ValueError, match=rf"^\[sample\] {name} must have shape \("):
        _C.sample(**{**good(), name: value[None]})


@pytest.mark.parametrize("name", [name for name in TENSORS if good()[name].dim() == 1])
def test_vectors_must_be_contiguous(name: str) -> None:
    value = good()[name].repeat_interleave(3)[::3]
    refuses(ValueError, f"{name} must be contiguous but its stride is 3", **{name: value})


@pytest.mark.parametrize("name", ["logprobs", "top_ids", "top_logprobs"])
def test_last_dimension_must_be_contiguous(name: str) -> None:
    value = good()[name].T.contiguous().T
    message = f"{name} must have a contiguous last dimension but its stride is 4"
    refuses(ValueError, message, **{name: value})


LOGITS: list[tuple[list[Any], type[Exception], str]] = [
    ([], ValueError, "logits must be of 1 to 3 models but are of 0"),
    ([torch.zeros(R, V)] * 4, ValueError, "logits must be of 1 to 3 models but are of 4"),
    ([torch.zeros(R, V)], ValueError, "coefficients must have M = 1 numbers but have 2"),
    ([torch.zeros(R, V), 3], TypeError, "logits must be a torch.Tensor but is int"),
    ([torch.zeros(R, V).double()] * 2, TypeError, "logits must be float32 but is float64"),
    ([torch.zeros(V)] * 2, ValueError, "logits must have shape (R, V) but got (10,)"),
    (
        [torch.zeros(R, V), torch.zeros(R, V + 1)],
        ValueError,
        "logits must have shape (R, V) = (3, 10) but got (3, 11)",
    ),
    (
        [torch.zeros(R, 0)] * 2,
        ValueError,
        "logits must have V in [1, 2^31) but got shape (3, 0)",
    ),
    (
        [torch.zeros(V, R).T] * 2,
        ValueError,
        "logits must have a contiguous last dimension but its stride is 3",
    ),
]


@pytest.mark.parametrize(("logits", "error", "message"), LOGITS, ids=lambda x: str(x)[:40])
def test_logits(logits: list[Any], error: type[Exception], message: str) -> None:
    refuses(error, message, logits=logits)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_coefficients(bad: float) -> None:
    shown = "nan" if math.isnan(bad) else "inf"
    message = f"coefficients must be finite but coefficients[1] = {shown}"
    refuses(ValueError, message, coefficients=[1.0, bad])


RANGES = [
    *(("uniform", "in [0, 1)", bad) for bad in (-0.1, 1.0, math.nan)),
    *(
        ("temperature", "0 or in [1e-30, 1e30]", bad)
        for bad in (-1.0, 1e-31, 1e31, math.nan, math.inf)
    ),
    ("top_k", ">= 0", -1),
    *(("top_p", "in (0, 1]", bad) for bad in (0.0, -0.5, 1.01, math.nan)),
    *(("min_p", "in [0, 1]", bad) for bad in (-0.1, 1.01, math.nan)),
    *(("adjust_repetition", "> 0 and finite", bad) for bad in (0.0, -1.0, math.nan, math.inf)),
    *(("adjust_subtract", "finite", bad) for bad in (math.inf, -math.inf, math.nan)),
    *(("adjust_bias", "finite or -inf", bad) for bad in (math.inf, math.nan)),
]


@pytest.mark.parametrize(("name", "rule", "bad"), RANGES)
@pytest.mark.parametrize("index", [0, 3])
def test_range(name: str, rule: str, bad: float, index: int) -> None:
    value = good()[name]
    value[index] = bad
    shown = repr(float(value[index].double()))
    refuses(ValueError, f"{name} must be {rule} but {name}[{index}] = {shown}", **{name: value})


@pytest.mark.parametrize(("name", "end"), [("rows", R), ("adjust_ids", V)])
@pytest.mark.parametrize("bad", [-1, 2**40, None])
def test_ids(name: str, end: int, bad: int | None) -> None:
    value = good()[name]
    value[3] = bad = end if bad is None else bad
    message = f"{name} must be in [0, {end}) but {name}[3] = {bad}"
    refuses(ValueError, message, **{name: value})


def test_ids_ascend_within_a_draw() -> None:
    for first, second in ((3, 3), (4, 1)):
        ids = torch.tensor([first, second, 0, 9, 4])
        message = (
            f"adjust_ids must ascend within a draw but adjust_ids[1] = {second} follows {first}"
        )
        refuses(ValueError, message, adjust_ids=ids)


def test_offsets() -> None:
    rule = "adjust_offsets must begin with 0 and end with N = 5 but are"
    refuses(ValueError, f"{rule} 1 and 5", adjust_offsets=torch.tensor([1, 2, 2, 4, 5]))
    refuses(ValueError, f"{rule} 0 and 6", adjust_offsets=torch.tensor([0, 2, 2, 4, 6]))
    message = "adjust_offsets must not descend but do after draw 1"
    refuses(ValueError, message, adjust_offsets=torch.tensor([0, 4, 2, 4, 5]))
    refuses(ValueError, message, adjust_offsets=torch.tensor([0, 2**40, 2, 4, 5]))


@pytest.mark.parametrize("k", [0, V + 1])
def test_number_of_most_likely_words(k: int) -> None:
    message = f"top_ids must have k in [1, V = 10] but got shape (4, {k})"
    changes = {"top_ids": torch.zeros(B, k, dtype=I64), "top_logprobs": torch.zeros(B, k)}
    refuses(ValueError, message, **changes)


def test_most_likely_words_come_with_their_logprobs() -> None:
    message = "top_ids must be given with top_logprobs, or neither"
    refuses(ValueError, message, top_ids=None)
    refuses(ValueError, message, top_logprobs=None)


def test_workspace(restore_threads: None) -> None:
    pe.set_num_threads(1)
    need = _C.sample_workspace_bytes(V)
    message = f"workspace must have {need} bytes but has {need - need % 8 - 8}"
    refuses(ValueError, message, workspace=torch.zeros(need // 8 - 1, dtype=F64))
    refuses(
        ValueError,
        "workspace must have shape (bytes,) but got (10, 10)",
        workspace=torch.zeros(10, 10),
    )


def test_python_function_raises_the_same_errors() -> None:
    z, u = torch.zeros(2, 5), torch.zeros(2, dtype=F64)
    for wrong, shapes in (
        ((torch.zeros(5), u), "[(5,)] and (2,)"),
        ((z, torch.zeros((), dtype=F64)), "[(2, 5)] and ()"),
        (([], u), "[] and (2,)"),
    ):
        message = f"[sample] logits must have shape (R, V) and uniform (B,) but got {shapes}"
        with pytest.raises(ValueError, match=re.escape(message)):
            sample(*wrong)
    with pytest.raises(ValueError, match=re.escape("[sample] rows must be in [0, 1) but rows[1]")):
        sample(z[:1], u)
    with pytest.raises(ValueError, match=re.escape("top_p must be in (0, 1] but top_p[0] = 0.0")):
        sample(z, u, top_p=0.0)
    with pytest.raises(TypeError, match="uniform must be float64 but is float32"):
        sample(z, u.float())
    with pytest.raises(ValueError, match="top_ids must have k in"):
        sample(z, u, top_logprobs=6)
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match=r"adjust_offsets must have shape \(B \+ 1,\) = \(3,\)"):
        sample(
            z, u, adjustments=LogitAdjustments(torch.zeros(2).long(), empty.long(), *[empty] * 3)
        )
