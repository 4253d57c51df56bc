"""lion against its float64 reference: values, bits, checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.lion import lion as reference
from tolerances import check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C
from pyengine.ops import lion, lion_steps

HYPER: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1, "grad_scale": 0.7}


def make(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """param, grad, exp_avg (n,)."""
    rng = torch.Generator().manual_seed(seed)
    param, grad, m = (torch.randn(n, generator=rng) for _ in range(3))
    return param, 0.1 * grad, 0.1 * m


def run(*tensors: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    """(param, exp_avg) after a step on copies."""
    param, grad, m = (t.clone() for t in tensors)
    lion(param, grad, m, **(HYPER | changes))
    assert torch.equal(grad, tensors[1])
    return param, m


def test_first_step_by_hand() -> None:
    """c = 0.1 g has g's sign: the weight moves by lr against it, and 0 stays; m = 0.01 g."""
    param, grad, m = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, -20.0, 0.0]), torch.zeros(3)
    param, m = run(param, grad, m, lr=0.5, weight_decay=0.0, grad_scale=1.0)
    assert param.tolist() == [0.5, 1.5, 1.0]
    torch.testing.assert_close(m, torch.tensor([0.03, -0.2, 0.0]))


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 111, 4099])
@pytest.mark.parametrize(
    "changes",
    [{}, {"betas": (0.0, 0.0)}, {"betas": (0.5, 0.3)}, {"weight_decay": 0.0}, {"lr": 0.0}],
    ids=str,
)
def test_values(n: int, changes: dict[str, Any], isa: str) -> None:
    tensors, hyper = make(n), HYPER | changes
    ours = run(*tensors, **hyper)
    exact = reference(*(t.double() for t in tensors), **hyper)
    plain = reference(*tensors, **hyper)
    for name, got, has, want in zip(("p", "m"), ours, plain, exact, strict=True):
        check_budget(got, has, want, name)


def test_bits_do_not_depend_on_threads() -> None:
    tensors, before, found = make(300_000), pe.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            pe.set_num_threads(threads)
            found.append(run(*tensors))
    finally:
        pe.set_num_threads(before)
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )


def test_many_tensors_in_one_call_have_the_bits_of_each_alone() -> None:
    first, second = make(111), make(33, 1)
    alone = [run(*first), run(*second)]
    given = [tuple(t.clone() for t in each) for each in (first, second)]
    lion_steps(given, **HYPER)()
    for (param, _, m), expected in zip(given, alone, strict=True):
        assert torch.equal(param, expected[0])
        assert torch.equal(m, expected[1])


def test_the_version_counters_move() -> None:
    param, grad, m = make(5)
    before = param._version, m._version
    lion(param, grad, m, **HYPER)
    assert param._version > before[0]
    assert m._version > before[1]


@pytest.mark.parametrize(
    ("name", "bad", "rule"),
    [
        ("lr", -1.0, "finite and >= 0 but is -1"),
        ("betas", (1.0, 0.5), "in [0, 1) but is 1"),
        ("betas", (0.5, -0.1), "in [0, 1) but is -0.1"),
        ("weight_decay", float("inf"), "finite and >= 0 but is inf"),
        ("grad_scale", float("nan"), "finite and >= 0 but is nan"),
    ],
)
def test_numbers_are_checked(name: str, bad: Any, rule: str) -> None:
    tensors = make(3)
    before = tensors[0].clone()
    with pytest.raises(ValueError) as caught:
        lion(*tensors, **(HYPER | {name: bad}))
    assert str(caught.value).startswith("[lion] ")
    assert str(caught.value).endswith(rule)
    assert torch.equal(tensors[0], before)


def test_nothing_is_written_where_one_of_many_tensors_is_refused() -> None:
    p, g, m = make(33)
    before = p.clone()
    with pytest.raises(ValueError, match=r"^\[lion\] exp_avg must have the shape of param \(33,\)"):
        lion_steps([(p, g, m), (p, g, m[:5])], **HYPER)()
    with pytest.raises(TypeError, match=r"^\[lion\] grad must be float32 but is float64"):
        lion(p, g.double(), m, **HYPER)
    with pytest.raises(ValueError, match=r"^\[lion\] grad must be contiguous"):
        lion(p, torch.zeros(33, 2)[:, 0], m, **HYPER)
    with pytest.raises(ValueError, match=r"^\[lion\] an entry must be 3 tensors but is 2"):
        _C.lion_step([(p, g)], 0.1, 0.9, 0.99, 0.0, 1.0)
    assert torch.equal(p, before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 4099])
def test_cuda_gives_the_bits_of_the_cpu(n: int) -> None:
    tensors = make(n)
    there = [t.cuda() for t in tensors]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(run(*there), run(*tensors), strict=True))
    with pytest.raises(
        ValueError, match=r"^\[lion\] param must be on cpu like the first param but"
    ):
        lion_steps([tensors, tuple(there)], **HYPER)()
