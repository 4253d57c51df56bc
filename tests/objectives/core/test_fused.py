"""Token-level and listwise objectives on the fused kernels: what float64 gives, and the formulas of
subclasses that have their own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives.lists import test_listwise
from objectives.tokens import test_token_level_engine
from torch import Tensor

from pyengine.objectives import LossInputs, LossOutput, Objective, get
from pyengine.objectives.lists import listwise
from pyengine.objectives.lists.infonca import InfoNCA
from pyengine.objectives.tokens import token_level
from pyengine.objectives.tokens.grpo import GRPO
from pyengine.objectives.tokens.surrogate import TokenBatch

NARROW, WIDE = torch.float32, torch.float64
TOKEN = [*test_token_level_engine.CASES, ("ppo", {"dual_clip": 1.2})]
LIST = [(name, {}) for name in test_listwise.NAMES]
LIST += [("pairwise_list", {"reduction": "mean"}), ("lipo_lambda", {"reduction": "mean"})]
LIST += [("nca_reward", {"temperature": 0.3})]


def inputs(kind: Any, dtype: torch.dtype, **changes: Any) -> LossInputs:
    """The same numbers in either dtype."""
    given = kind.part([0, 1, 2, 3], torch.float32, **changes)
    logps = {
        name: None if (x := getattr(given, name)) is None else x.to(dtype)
        for name in ("policy_token_logps", "reference_token_logps", "sampler_token_logps")
    }
    fields = {name: getattr(given, name) for name in given.__dataclass_fields__}
    return LossInputs(**(fields | logps))


def check_same(narrow: LossOutput, wide: LossOutput) -> None:
    assert narrow.dlogps.dtype == torch.float32
    torch.testing.assert_close(narrow.loss.double(), wide.loss, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(narrow.dlogps, wide.dlogps.float(), rtol=2e-7, atol=1e-12)
    assert list(narrow.metrics) == list(wide.metrics)
    for name, values in wide.metrics.items():
        torch.testing.assert_close(narrow.metrics[name], values, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), TOKEN + LIST)
def test_the_kernel_gives_what_float64_gives(name: str, options: dict[str, Any]) -> None:
    objective = get(name, **options)
    kind = test_listwise if isinstance(objective, listwise.ListwiseObjective) else (
        test_token_level_engine
    )  # fmt: skip
    check_same(objective(inputs(kind, NARROW)), objective(inputs(kind, WIDE)))


@pytest.mark.parametrize("name", test_listwise.NAMES)
def test_groups_whose_responses_are_not_together(name: str) -> None:
    group = torch.tensor([2, 0, 1, 0, 2, 3, 0, 3, 2])
    x, exact = (inputs(test_listwise, dtype, group=group) for dtype in (NARROW, WIDE))
    check_same(get(name)(x), get(name)(exact))


class CalledError(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "module", "kernel"),
    [("ppo", token_level, "token_loss"), ("infonca", listwise, "listwise_loss")],
)
def test_float32_takes_the_kernel_and_float64_does_not(
    name: str, module: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: Any, **__: Any) -> None:
        raise CalledError

    kind = test_listwise if module is listwise else test_token_level_engine
    monkeypatch.setattr(module, kernel, called)
    get(name)(inputs(kind, WIDE))
    with pytest.raises(CalledError):
        get(name)(inputs(kind, NARROW))


class HalfGRPO(GRPO):
    """Another loss than that of its surrogate."""

    def losses(self, x: TokenBatch) -> Tensor:
        return 0.5 * super().losses(x)


class SequenceSum(GRPO):
    """Another reduction."""

    def reduce(self, losses: Tensor, x: TokenBatch) -> Tensor:
        return 0.5 * super().reduce(losses, x)


class HalfInfoNCA(InfoNCA):
    """Another loss than that of its surrogate."""

    def losses(self, scores: Tensor, x: Tensor) -> Tensor:
        return 0.5 * super().losses(scores, x)


@pytest.mark.parametrize(
    ("own", "base", "kind"),
    [
        (HalfGRPO(), GRPO(), test_token_level_engine),
        (SequenceSum(), GRPO(), test_token_level_engine),
        (HalfInfoNCA(), InfoNCA(), test_listwise),
    ],
)
def test_a_subclass_with_a_formula_of_its_own_is_asked(
    own: Objective, base: Objective, kind: Any
) -> None:
    given = inputs(kind, NARROW)
    got, whole = own(given), base(given)
    assert got.loss.item() == pytest.approx(whole.loss.item() / 2, rel=1e-6)
    torch.testing.assert_close(got.dlogps, whole.dlogps / 2, rtol=1e-6, atol=1e-12)
