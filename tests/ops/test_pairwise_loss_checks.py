"""pairwise_loss: one test for each message of its checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyengine import _C
from pyengine.ops import PairOperand, PairTerm, pairwise_loss

C, S = 5, 4
ROW = torch.zeros(C)
INDEX = torch.tensor([0, 1, 2, 3, 0])
TERM = PairTerm("logistic", [0.1, -0.1])
SIDE = PairOperand(torch.zeros(S), torch.zeros(S), INDEX)


def operands(k: int = 0, **changes: Any) -> dict[str, Any]:
    """Two operands without an index; what is changed in one of them."""
    both = [PairOperand(ROW, ROW), PairOperand(ROW, ROW)]
    both[k] = both[k]._replace(**changes)
    return {"operands": both}


def sides(k: int = 0, **changes: Any) -> dict[str, Any]:
    """Two operands with one, and their weight."""
    both = [SIDE, SIDE]
    both[k] = both[k]._replace(**changes)
    return {"operands": both, "weight": ROW}


def term(**changes: Any) -> dict[str, Any]:
    return {"terms": [TERM._replace(**changes)]}


KIND: list[tuple[dict[str, Any], str]] = [
    ({"operands": SIDE.policy}, r"operands must be a list or a tuple but is Tensor"),
    ({"operands": [ROW, ROW]}, r"operands\[0\] must be a PairOperand but is Tensor"),
    ({"operands": [(ROW, ROW)] * 2}, r"operands\[0\] must be a PairOperand but is tuple"),
    (operands(0, policy=None), r"operands\[0\].policy must be a torch.Tensor but is NoneType"),
    (operands(1, policy=3.0), r"operands\[1\].policy must be a torch.Tensor but is float"),
    (operands(1, policy=ROW.bfloat16()), r"operands\[1\].policy must be float32 or float64 but"),
    (operands(1, reference=ROW.int()), r"operands\[1\].reference must be float32 or float64 but"),
    (sides(0, index=INDEX.int()), r"operands\[0\].index must be int64 but is int32"),
    (sides(0, index=[0]), r"operands\[0\].index must be a torch.Tensor but is list"),
    ({"terms": TERM.family}, r"terms must be a list or a tuple but is str"),
    ({"terms": ["logistic"]}, r"terms\[0\] must be a PairTerm but is str"),
    (term(coefficients=0.1), r"terms\[0\].coefficients must be a list or a tuple but is float"),
    (term(coefficients=[0.1, "a"]), r"terms\[0\].coefficients\[1\] must be a torch.Tensor but is"),
    (term(shift=ROW.bfloat16()), r"terms\[0\].shift must be float32 or float64 but is bfloat16"),
    (term(parameter=None), r"terms\[0\].parameter must be a number but is NoneType"),
    ({**sides(), "weight": 1.0}, r"weight must be a torch.Tensor but is float"),
    ({**sides(), "weight": ROW.long()}, r"weight must be float32 or float64 but is int64"),
]

VALUE: list[tuple[dict[str, Any], str]] = [
    ({"operands": []}, r"operands must have 1 to 8 items but has 0"),
    ({"operands": [SIDE] * 9}, r"operands must have 1 to 8 items but has 9"),
    ({"terms": []}, r"terms must have 1 to 8 items but has 0"),
    ({"terms": [TERM] * 9}, r"terms must have 1 to 8 items but has 9"),
    (operands(1, policy=ROW[:4]), r"operands\[1\].policy must have shape \(C,\) = \(5,\) but got"),
    (
        operands(0, policy=ROW[None]),
        r"operands\[0\].policy must have shape \(C,\) but got \(1, 5\)",
    ),
    (operands(0, policy=torch.zeros(10)[::2]), r"operands\[0\].policy must be contiguous but"),
    (operands(1, reference=ROW[:1]), r"operands\[1\].reference must have shape \(C,\) = \(5,\)"),
    (sides(1, policy=ROW), r"operands\[1\].policy must have shape \(S,\) = \(4,\) but got \(5,\)"),
    (sides(1, index=INDEX[:4]), r"operands\[1\].index must have shape \(C,\) = \(5,\) but got"),
    (sides(0, index=INDEX[None]), r"operands\[0\].index must have shape \(C,\) but got \(1, 5\)"),
    (sides(1, index=INDEX + 1), r"operands\[1\].index must be in \[0, 4\) but is 4 at 3"),
    (sides(0, index=INDEX - 1), r"operands\[0\].index must be in \[0, 4\) but is -1 at 0"),
    (sides(0, index=INDEX - 2**63), r"operands\[0\].index must be in \[0, 4\) but is -9223.* at 0"),
    (sides(0, index=INDEX + 2**62), r"operands\[0\].index must be in \[0, 4\) but is 4611.* at 0"),
    (sides(0, policy=ROW[:0], reference=None), r"operands\[0\].index must be in \[0, 0\) but is 0"),
    (
        sides(1, policy=ROW, reference=ROW, index=None),
        r"operands must all have an index or none, but operands\[1\] has none",
    ),
    (operands(1, index=INDEX), r"operands must all have an index or none, .*\[1\] has one"),
    (
        term(family="softplus"),
        r"terms\[0\].family must be one of logistic, .*exo but is 'softplus'",
    ),
    (term(family=None), r"terms\[0\].family must be one of logistic, .*exo but is None"),
    (term(coefficients=[1.0]), r"terms\[0\].coefficients must have one item .* K = 2 .* but has 1"),
    (term(coefficients=[1.0, float("nan")]), r"terms\[0\].coefficients\[1\] must be finite but is"),
    (term(coefficients=[ROW[:4], 1.0]), r"terms\[0\].coefficients\[0\] must have shape \(C,\) ="),
    (term(shift=float("inf")), r"terms\[0\].shift must be finite but is inf"),
    (
        term(scale=torch.tensor(1.0)),
        r"terms\[0\].scale must have shape \(C,\) = \(5,\) but got \(\)",
    ),
    (term(parameter=0.1), r"terms\[0\].parameter must be 0 for a family that has none but is 0.1"),
    (term(family="exo"), r"terms\[0\].parameter must be eps in \(0, 1\) but is 0.0"),
    (term(family="exo", parameter=1), r"terms\[0\].parameter must be eps in \(0, 1\) but is 1"),
    (term(family="exp_logistic"), r"terms\[0\].parameter must be tau in \[1e-6, 1e6\] but is 0.0"),
    ({**operands(), "weight": ROW}, r"weight is of dsums, so the operands must have an index"),
    ({**sides(), "weight": None}, r"weight must be given where the operands have an index"),
    ({**sides(), "weight": ROW[:3]}, r"weight must have shape \(C,\) = \(5,\) but got \(3,\)"),
]


def call(changes: dict[str, Any]) -> None:
    pairwise_loss(**({"terms": [TERM]} | operands() | changes))


@pytest.mark.parametrize(("changes", "message"), KIND, ids=[m for _, m in KIND])
def test_kind(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=r"^\[pairwise_loss\] " + message):
        call(changes)


@pytest.mark.parametrize(("changes", "message"), VALUE, ids=[m for _, m in VALUE])
def test_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^\[pairwise_loss\] " + message):
        call(changes)


def test_what_is_valid_is_taken() -> None:
    call({})
    call(sides())


def outputs(**changes: Any) -> list[Any]:
    given = {
        "losses": torch.zeros(C),
        "slopes": torch.zeros(2, C),
        "dsums": torch.zeros(S).double(),
    }
    return list((given | changes).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": torch.zeros(C).double()}, r"losses must be float32 but is float64"),
        ({"losses": torch.zeros(4)}, r"losses must have shape \(C,\) = \(5,\) but got \(4,\)"),
        ({"slopes": torch.zeros(C)}, r"slopes must have shape \(K, C\) = \(2, 5\) but got \(5,\)"),
        ({"slopes": torch.zeros(2, C).double()}, r"slopes must be float32 but is float64"),
        (
            {"slopes": torch.zeros(2, 2 * C)[:, ::2]},
            r"slopes must have a contiguous last dimension",
        ),
        ({"dsums": torch.zeros(S)}, r"dsums must be float64 but is float32"),
        (
            {"dsums": torch.zeros(C).double()},
            r"dsums must have shape \(S,\) = \(4,\) but got \(5,\)",
        ),
        ({"dsums": None}, r"dsums must have shape \(S,\) = \(4,\) but is None"),
    ],
    ids=str,
)
def test_outputs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^\[pairwise_loss\] " + message):
        _C.pairwise_loss([SIDE, SIDE], [TERM], ROW, *outputs(**changes))


def test_dsums_without_an_index() -> None:
    """It would be left as it was."""
    side = PairOperand(ROW)
    with pytest.raises(ValueError, match="dsums must be None where the operands have no index"):
        _C.pairwise_loss([side, side], [TERM], None, *outputs(dsums=torch.zeros(C).double()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("field", ["policy", "reference", "index"])
def test_all_on_one_device(field: str) -> None:
    moved: Tensor = getattr(SIDE, field).cuda()
    message = rf"operands\[1\].{field} must be on cpu like operands\[0\].policy but is on cuda:0"
    with pytest.raises(ValueError, match=message):
        call(sides(1, **{field: moved}))
