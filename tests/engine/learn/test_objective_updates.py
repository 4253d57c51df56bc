"""One update with each objective: autograd's gradient, the same bits however the batch is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objectives.cases import CASES as ALL_CASES
from objectives.cases import Case
from tiny_batches import flat, gradients, group, same_bits, shift
from torch import Tensor

import pyengine as pe
from pyengine import objectives
from pyengine.engine.batch.loss_batch import loss_batch
from pyengine.engine.batch.packing import PackedBatch, micro_batches, pack
from pyengine.engine.torch_path.tree_model_torch import TreeAttention, token_logps
from pyengine.errors import RequestError
from pyengine.models.decoder import Decoder
from pyengine.objectives import Objective

SIZES = [(7, [5, 9]), (1, [3, 1, 4]), (12, [6, 2, 11]), (4, [8, 8])]


def batch(objective: Objective) -> pe.Preferences:
    """Everything that the objective may ask for; the responses it takes beside pairs cross groups
    where there are several."""
    generator = torch.Generator().manual_seed(5)
    groups = [group(*size, seed=i) for i, size in enumerate(SIZES)]

    def table(low: float, high: float) -> list[list[float | None]]:
        return [
            [low + (high - low) * torch.rand((), generator=generator).item() for _ in g.responses]
            for g in groups
        ]

    for g in groups:
        for response in g.responses:
            noise = torch.rand(len(response.token_ids), generator=generator)
            response.logprobs = (-5 - noise).tolist()
    # A softmax of relevance takes none below 0.
    rewards = table(0, 2) if objective.name == "softmax_list" else table(-1, 1)
    labels = [[bool(r is not None and r > 0) for r in row] for row in rewards]
    feedback = pe.preferences.Feedback.from_rewards(rewards)
    feedback.labels = labels
    feedback.columns = {
        "scores": table(0, 1),
        "win_rate": table(0, 1),
        "visits": [[1.0 + k for k in range(len(g.responses))] for g in groups],
        "safe": [[float(x) for x in row] for row in labels],
        "values": table(-1, 1),
        "weight": table(0.5, 1),
        "target_logps": table(-60, -10),
        "off_policy": [[float(k == 1) for k in range(len(g.responses))] for g in groups],
        "greedy_rewards": [[0.1] * len(g.responses) for g in groups],
    }
    feedback.token_columns = {
        name: [
            [torch.rand(len(r.token_ids), generator=generator).tolist() for r in g.responses]
            for g in groups
        ]
        for name in ("token_weight", "reward_mask", "kl_mask")
    }
    comparisons = [
        pe.Comparison(0, 0, 1, probability=0.9),
        pe.Comparison(1, 1, 0, probability=0.7),
        pe.Comparison(2, 2, 0, probability=0.6, weight=0.5),
        pe.Comparison(2, 0, 1, probability=0.8, weight=2.0),
        pe.Comparison(3, 1, 0, probability=0.9),
    ]
    further = len(getattr(objective, "operands", "12")) - 2
    if further == 1:
        aux: list[Any] = [1, 2, 2, 1, 0]
    else:
        aux = [[(k % 4, (c + k) % 2) for k in range(further)] for c in range(5)]
    if "target" not in getattr(objective, "inputs", ()):
        comparisons = [dataclasses.replace(c, probability=1.0) for c in comparisons]
    if objective.name == "aot":  # of ranks, which have no weights
        comparisons = [dataclasses.replace(c, weight=1.0) for c in comparisons]
    comparisons = [
        dataclasses.replace(c, auxiliary=a) for c, a in zip(comparisons, aux, strict=True)
    ]
    return pe.Preferences(groups, comparisons, feedback)


SEQUENCES = {case.name for case in ALL_CASES}
CASES = list(ALL_CASES)
CASES += [Case(name) for name in objectives.available() if name not in SEQUENCES]
CASES += [
    Case("grpo", options={"beta": 0.0, "reduction": "token", "clip_high": 0.28}),
    Case("grpo", options={"level": "sequence"}),
    Case("grpo", options={"entropy_coef": 0.05}),
    Case("ppo", options={"entropy_coef": -0.05, "reduction": "sequence"}),
]


def test_a_kl_needs_a_reference(make_engine) -> None:
    objective = objectives.PMPO(beta=0.5)
    with pytest.raises(RequestError) as caught:
        make_engine(reference="none").update(batch(objective), objective)
    assert str(caught.value) == (
        "[update] pmpo needs kl over the whole vocabulary: computed on the CPU, and a kl with a "
        "reference only"
    )


def log_softmax(decoder: Decoder, packed: PackedBatch) -> Tensor:
    """(N, V) in torch, of the response tokens."""
    attend = TreeAttention(packed, decoder.spec)
    hidden = decoder(packed.token_ids, packed.positions, attend)[packed.source_rows]
    return torch.log_softmax(hidden @ decoder.head_weight().T, -1)


def side_values(engine: pe.Engine, packed: PackedBatch, objective: Objective) -> dict[str, Tensor]:
    """What the objective takes of whole distributions, in torch, differentiable in the policy."""
    logps = log_softmax(engine._network.decoder, packed)
    assert engine._reference.decoder is not None
    with torch.no_grad():
        reference = log_softmax(engine._reference.decoder, packed)
    others = logps.scatter(1, packed.targets[:, None], -torch.inf)
    return {
        side.name: {
            "kl": (reference.exp() * (reference - logps)).sum(-1),
            "entropy": -(logps.exp() * logps).sum(-1),
            "sum_squares": logps.exp().square().sum(-1),
            "alternatives": others.topk(side.count).values,
        }[side.name]
        for side in objective.side_outputs
    }


def prepared(engine: pe.Engine, objective: Objective) -> pe.Engine:
    """The policy has left the reference, and the snapshots are there."""
    shift(engine)
    for seed, name in enumerate(objective.models):
        engine.snapshot(name)
        shift(engine, seed=seed + 1)
    return engine


def gradient(engine: pe.Engine, objective: Objective) -> tuple[dict[str, float], dict[str, Tensor]]:
    metrics = engine.forward_backward(batch(objective), objective)
    return metrics, gradients(engine)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_autograds(make_engine, case: Case) -> None:
    """The objective in float64 on log-probs of the training modules, and torch's way back."""
    objective = objectives.get(case.name, **case.options)
    engine = prepared(make_engine(), objective)
    metrics = engine.forward_backward(batch(objective), objective)
    ours = {name: slope.clone() for name, slope in engine._learner.gradients().items()}
    engine._network.optimizer.zero_grad()
    examples = loss_batch(batch(objective), objective, engine.spec.vocab_size, engine.max_positions)
    packed = pack(examples.trees, torch.device("cpu"))
    logps = token_logps(engine._network.decoder, packed)
    learner = engine._learner
    models: Mapping[str, Tensor] = {
        name: torch.cat(learner.model_logps(name, examples.trees)).double()
        for name in objective.models
    }
    reference = learner.reference_logps(examples.trees)
    assert reference is not None
    kl = None
    if objective.needs_mismatched:
        swapped = examples.mismatched_trees()
        policy = (
            token_logps(engine._network.decoder, pack(swapped, torch.device("cpu"))).double().sum()
        )
        of_reference = torch.cat(learner.reference_logps(swapped) or []).double().sum()
        kl = max(0.0, (policy - of_reference).item() / sum(len(t.responses) for t in swapped))
    side = side_values(engine, packed, objective)
    output = objective(
        examples.inputs(
            range(len(examples.trees)),
            objective.unit,
            packed.cu_seqlens,
            logps.detach().double(),
            torch.cat(reference).double(),
            models,
            kl,
            {name: values.detach().double() for name, values in side.items()},
        )
    )
    total = (logps * output.dlogps.float()).sum()
    for name, slope in output.dside.items():
        assert slope.abs().sum() > 0
        total = total + (side[name] * slope.float()).sum()
    total.backward()  # type: ignore[no-untyped-call]
    theirs = {
        n: p.grad for n, p in engine._network.decoder.named_parameters() if p.grad is not None
    }
    assert metrics["loss"] == pytest.approx(output.loss.item(), rel=2e-5, abs=1e-6)
    assert ours.keys() == theirs.keys()
    assert flat(theirs).norm() > 0
    assert F.cosine_similarity(flat(ours), flat(theirs), dim=0) > 0.99999


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_bit_depends_on_how_the_batch_is_cut(make_engine, case: Case, dtype: str) -> None:
    objective = objectives.get(case.name, **case.options)
    results = [
        gradient(
            prepared(make_engine(dtype=dtype, micro_batch_tokens=budget), objective), objective
        )
        for budget in (1000, 1, 50)
    ]
    sizes = [t.num_rows for t in loss_batch(batch(objective), objective, 259, 64).trees]
    assert [len(list(micro_batches(sizes, n))) for n in (1000, 1, 50)] == [1, 4, 2]
    for metrics, slopes in results[1:]:
        assert same_bits(slopes, results[0][1])
        assert metrics == pytest.approx(results[0][0], rel=1e-6, abs=1e-9)


def test_a_response_of_another_group_may_be_auxiliary(make_engine) -> None:
    """As a rationale is: all log-probs are computed before the loss, whatever the budget is."""
    groups = [group(*size, seed=i) for i, size in enumerate(SIZES)]
    crossing = pe.Preferences(
        groups[:3],
        [pe.Comparison(0, 0, 1, auxiliary=[(2, 1)]), pe.Comparison(1, 1, 0, auxiliary=0)],
    )
    objective = CrossingSum()
    found = []
    for budget in (1000, 1):
        engine = make_engine(micro_batch_tokens=budget)
        engine.forward_backward(crossing, objective)
        found.append(gradients(engine))
    assert same_bits(*found)


class CrossingSum(objectives.PairwiseObjective):
    """Minus the log-prob of a third response."""

    name = "crossing_sum"
    needs_reference = False
    operands = ("chosen", "rejected", "explore")

    def losses(self, x: objectives.Examples) -> Tensor:
        return -x.policy["explore"] + 0.5 * x.policy["rejected"]


def test_what_an_objective_needs_is_asked_for(make_engine) -> None:
    engine, full = make_engine(), batch(objectives.DPO())
    with pytest.raises(RequestError) as caught:
        engine.update(pe.Preferences(full.groups, full.comparisons), objectives.KTO())
    assert str(caught.value) == (
        "[kto] needs labels of every response: give it in Feedback.columns"
    )
    with pytest.raises(RequestError, match="must hold at least one response but holds none"):
        engine.update(pe.Preferences([], []), objectives.KTO())
    one = pe.Preferences(full.groups[:1], (), pe.preferences.Feedback.from_labels([[True, False]]))
    with pytest.raises(RequestError, match="at least two prompts, whose responses can be swapped"):
        engine.update(one, objectives.KTO())
    with pytest.raises(RequestError) as caught:
        pe.Preferences(full.groups, (), pe.preferences.Feedback.from_labels([[True]]))
    assert str(caught.value).startswith(
        "[Feedback] rewards must have the shape of the groups, [2, 3, 3, 2] responses"
    )
    assert not gradients(engine)
    with pytest.raises(RequestError) as caught:
        pe.Preferences(full.groups, [pe.Comparison(0, 0, 1, auxiliary=5)])
    assert str(caught.value) == (
        "[Preferences] comparisons[0].auxiliary must be a response of the batch but is response 5 "
        "of group 0"
    )


def test_probabilities_are_not_ignored(make_engine) -> None:
    soft = pe.Preferences([group(4, [3, 2], seed=1)], [pe.Comparison(0, 0, 1, probability=0.8)])
    with pytest.raises(RequestError) as caught:
        make_engine().update(soft, objectives.IPO())
    assert str(caught.value) == (
        "[ipo] takes no probabilities but a comparison has one other than 1: soft_dpo, dpo and "
        "others do"
    )


def test_a_preference_matrix_gives_win_rates(make_engine) -> None:
    """Means over the group's responses, the response itself included with 1/2."""
    groups = [group(4, [3, 2], seed=1)]
    feedback = pe.preferences.Feedback.from_rewards([[1.0, 0.0]])
    feedback.preference_matrix = [[[0.5, 0.9], [0.1, 0.5]]]
    given = pe.preferences.Feedback.from_rewards([[1.0, 0.0]])
    given.columns = {"win_rate": [[0.7, 0.3]]}
    found = []
    for each in (feedback, given):
        engine = make_engine()
        comparisons = [pe.Comparison(0, 0, 1)]
        engine.forward_backward(pe.Preferences(groups, comparisons, each), objectives.SPPO(beta=1))
        found.append(gradients(engine))
    assert same_bits(*found)


def test_responses_without_a_value_take_no_part(make_engine) -> None:
    """An abstention is not a label; the mean is over those that have one."""
    groups = [group(4, [3, 2], seed=1), group(5, [2, 4], seed=2)]
    feedback = pe.preferences.Feedback.from_rewards([[1.0, None], [0.0, 1.0]])
    feedback.labels = [[True, False], [False, True]]
    engine = make_engine()
    engine.forward_backward(pe.Preferences(groups, (), feedback), objectives.KTO())
    fewer = [pe.Group(groups[0].prompt_ids, groups[0].responses[:1]), groups[1]]
    other = make_engine()
    labels = pe.preferences.Feedback.from_labels([[True], [False, True]])
    other.forward_backward(pe.Preferences(fewer, (), labels), objectives.KTO())
    assert same_bits(gradients(engine), gradients(other))
