"""What objectives take of whole distributions: values and gradients against torch over logits."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from test_objective_updates import SIZES, side_values
from tiny_batches import flat, gradients, group, same_bits, shift
from torch import Tensor

import pyengine as pe
from pyengine.engine.batch.packing import Tree, pack
from pyengine.engine.torch_path.tree_model_torch import token_logps
from pyengine.errors import RequestError
from pyengine.objectives import LossInputs, LossOutput, Objective, SideOutput
from pyengine.objectives.core.objective import ENTROPY, KL, SUM_SQUARES

CPU = torch.device("cpu")


class Everything(Objective):
    """Slopes 0.3 of the log-probs, and SLOPES of what else there is."""

    name = "everything"
    unit = "response"
    side_outputs = (KL, ENTROPY, SUM_SQUARES, SideOutput("alternatives", 2))
    SLOPES: ClassVar = {"kl": 0.7, "entropy": -0.2, "alternatives": torch.tensor([0.5, 1.0])}

    def __call__(self, inputs: LossInputs) -> LossOutput:
        dside = {n: torch.ones_like(inputs.side[n]) * slope for n, slope in self.SLOPES.items()}
        loss = inputs.policy_token_logps.sum()
        zero = torch.zeros_like(inputs.weight)
        return LossOutput(
            loss, torch.full_like(inputs.policy_token_logps, 0.3), {"none": zero}, dside
        )


def preferences() -> pe.Preferences:
    groups = [group(*size, seed=i) for i, size in enumerate(SIZES)]
    return pe.Preferences(groups)


def passed(engine: pe.Engine) -> tuple[Any, dict[str, Tensor], Any]:
    trees = [Tree(g.prompt_ids, [r.token_ids for r in g.responses]) for g in preferences().groups]
    packed = pack(trees, CPU)
    made = engine._learner.policy_pass(packed, Everything.side_outputs)
    return packed, side_values(engine, packed, Everything()), made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_those_of_the_logits(make_engine, dtype: str) -> None:
    engine = make_engine(dtype=dtype)
    shift(engine)
    _, theirs, made = passed(engine)
    tolerance = 2e-5 if dtype == "float32" else 0.03  # activations are rounded
    assert made.side.keys() == theirs.keys()
    for name, values in made.side.items():
        assert values.shape == theirs[name].shape
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, theirs[name].float(), rtol=tolerance, atol=tolerance)


def test_the_token_is_never_its_own_alternative(make_engine) -> None:
    """Also where it is the likeliest word, and where it is none of the likeliest."""
    engine = make_engine()
    trees = [Tree([1, 2, 3], [[4, 5]])]
    greedy = engine._learner.policy_pass(pack(trees, CPU), [SideOutput("alternatives", 258)])
    assert greedy.side["alternatives"].shape == (2, 258)
    total = greedy.side["alternatives"].double().exp().sum(1) + greedy.logps.double().exp()
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)
    assert bool((greedy.side["alternatives"].diff(dim=1) <= 0).all())


def test_entropy_of_a_uniform_model_is_log_v(make_engine) -> None:
    engine = make_engine()
    with torch.no_grad():
        for parameter in engine._network.decoder.parameters():
            parameter.zero_()
    made = engine._learner.policy_pass(pack([Tree([1], [[2, 3]])], CPU), [ENTROPY])
    assert made.side["entropy"].tolist() == pytest.approx([math.log(259)] * 2, rel=1e-6)


def test_gradient_is_autograds(make_engine) -> None:
    engine = make_engine()
    shift(engine)
    packed, theirs, made = passed(engine)
    output = Everything()(inputs_of(made, packed))
    made.backward(output.dlogps, output.dside)
    engine._learner.settle()
    ours = {name: slope.clone() for name, slope in engine._learner.gradients().items()}
    engine._network.optimizer.zero_grad()
    total = (token_logps(engine._network.decoder, packed) * output.dlogps).sum()
    for name, slope in output.dside.items():
        total = total + (theirs[name] * slope).sum()
    total.backward()
    expected = {
        n: p.grad for n, p in engine._network.decoder.named_parameters() if p.grad is not None
    }
    assert F.cosine_similarity(flat(ours), flat(expected), dim=0) > 0.999999
    assert flat(ours).norm().item() == pytest.approx(flat(expected).norm().item(), rel=1e-4)


def inputs_of(made: Any, packed: Any) -> LossInputs:
    none = torch.zeros(0, dtype=torch.int64)
    ones = torch.ones(len(packed.cu_seqlens) - 1)
    return LossInputs(
        made.logps, None, packed.cu_seqlens, none, none, torch.ones(0), ones, 1.0, side=made.side
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_bit_depends_on_how_the_batch_is_cut(make_engine, dtype: str) -> None:
    found = []
    for budget in (1000, 1, 50):
        engine = make_engine(dtype=dtype, micro_batch_tokens=budget)
        shift(engine)
        engine.forward_backward(preferences(), Everything())
        found.append(gradients(engine))
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


def test_nothing_is_computed_for_a_batch_that_the_objective_refuses(
    make_engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    for name in ("policy_pass", "logps", "reference_logps"):
        monkeypatch.setattr(engine._learner, name, None)
    groups = [group(*size, seed=i) for i, size in enumerate(SIZES)]
    with pytest.raises(RequestError, match=r"\[kto\] needs labels of every response"):
        engine.update(pe.Preferences(groups), pe.objectives.KTO())
    some = pe.preferences.Feedback.from_rewards([[0.0] * len(g.responses) for g in groups])
    some.columns = {"weight": [[1.0] * len(g.responses) for g in groups]}
    some.columns["weight"][1][2] = None
    with pytest.raises(RequestError) as caught:
        engine.update(pe.Preferences(groups, feedback=some), pe.objectives.NLL())
    assert str(caught.value) == ("[nll] weight must be given for every response and be finite")


def test_numbers_of_tokens_are_checked() -> None:
    groups = [group(4, [3, 2], seed=1)]
    feedback = pe.preferences.Feedback.from_rewards([[1.0, 0.0]])
    feedback.token_columns = {"token_weight": [[[1.0, 1.0], None]]}
    with pytest.raises(RequestError) as caught:
        pe.Preferences(groups, feedback=feedback)
    assert str(caught.value) == (
        "[Feedback] token_columns['token_weight'][0][0] must have one number for each of the "
        "response's 3 tokens but has 2"
    )
    feedback.token_columns = {"token_weight": [[[1.0, math.inf, 1.0], None]]}
    with pytest.raises(RequestError, match=r"\[0\]\[0\] must be finite but holds inf"):
        pe.Preferences(groups, feedback=feedback)
    given: dict[str, Any] = {"token_columns": {"x": [[None]]}}
    with pytest.raises(RequestError, match=r"token_columns\['x'\] must have the shape of rewards"):
        pe.preferences.Feedback([[1.0, 0.0]], [["value", "value"]], **given)
