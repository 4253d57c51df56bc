"""One update: its gradient against transformers and finite differences, its parts, its failures."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tiny_batches import (
    flat,
    gradients,
    group,
    moments,
    preferences,
    random_ids,
    same_bits,
    shift,
    weights,
)
from transformers import AutoModelForCausalLM

import pyengine as pe
from pyengine.engine.optim.optimizer import MAX_SKIPPED_STEPS
from pyengine.errors import NonFiniteError, RequestError
from pyengine.objectives import DPO, LossInputs, LossOutput, Objective

EMPTY = pe.Preferences([], [])


def relative(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """|ours - theirs| / |theirs| over all weights together."""
    return ((flat(ours) - flat(theirs)).norm() / flat(theirs).norm()).item()


@pytest.fixture
def shifted(make_engine):
    """An engine whose policy has left the reference, so that no term of the gradient is special."""

    def make(**options: object) -> pe.Engine:
        engine = make_engine(**options)
        shift(engine)
        return engine

    return make


# The gradient


def dpo_in_torch(
    policy: torch.nn.Module, reference: torch.nn.Module, batch: pe.Preferences, beta: float
) -> torch.Tensor:
    """The batch loss with every prompt and response a sequence of its own."""

    def logp(model: torch.nn.Module, made: pe.Group, k: int) -> torch.Tensor:
        ids = torch.tensor([made.prompt_ids + made.responses[k].token_ids])
        P = len(made.prompt_ids)
        logps = model(ids).logits[0, P - 1 : -1].log_softmax(-1)
        return logps.gather(1, ids[0, P:, None]).sum()

    total = torch.tensor(0.0)
    for c in batch.comparisons:
        made = batch.groups[c.group]
        ratios = [logp(policy, made, k) - logp(reference, made, k).detach()
                  for k in (c.winner, c.loser)]  # fmt: skip
        z = beta * (ratios[0] - ratios[1])
        loss = -c.probability * F.logsigmoid(z) - (1 - c.probability) * F.logsigmoid(-z)
        total = total + c.weight * loss
    return total / sum(c.weight for c in batch.comparisons)


def test_gradient_equals_autograd_over_transformers(shifted, tiny_model, tmp_path):
    engine = shifted()
    batch = preferences()
    engine.save_pretrained(tmp_path / "policy")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (tmp_path / "policy", tiny_model)
    )
    loss = dpo_in_torch(policy, reference, batch, beta=0.3)
    loss.backward()
    metrics = engine.forward_backward(batch, DPO(beta=0.3))
    ours = gradients(engine)
    theirs = {name: p.grad for name, p in policy.named_parameters()}
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert ours.keys() == theirs.keys()  # every weight, under its Hugging Face name
    assert F.cosine_similarity(flat(ours), flat(theirs), dim=0) > 0.99999
    assert relative(ours, theirs) < 1e-4


def test_gradient_equals_finite_differences(shifted):
    """Along the gradient itself, and along the largest entry of each of five weights."""
    engine = shifted()
    batch, objective = preferences(), DPO(beta=0.5)
    engine.forward_backward(batch, objective)
    parameters = dict(engine._network.decoder.named_parameters())
    slopes = {name: g.clone() for name, g in engine._learner.gradients().items()}
    engine._network.optimizer.zero_grad()
    norm = math.sqrt(sum(g.double().square().sum().item() for g in slopes.values()))

    def loss(move: dict[str, torch.Tensor], size: float) -> float:
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, direction in move.items():
                parameters[name].add_(direction, alpha=size)
        value = engine.forward_backward(batch, objective)["loss"]
        engine._network.optimizer.zero_grad()
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])
        return value

    def slope(move: dict[str, torch.Tensor], size: float) -> float:
        return (loss(move, size) - loss(move, -size)) / (2 * size)

    along = {name: g / norm for name, g in slopes.items()}
    assert slope(along, 3e-3) == pytest.approx(norm, rel=2e-3)
    for name in ("embed.weight", "layers.0.attn.k.weight", "layers.1.mlp.down.weight",
                 "layers.0.attn_norm.weight", "final_norm.weight"):  # fmt: skip
        at = slopes[name].abs().argmax()
        one = torch.zeros_like(slopes[name]).view(-1)
        one[at] = 1.0
        entry = slopes[name].view(-1)[at].item()
        assert slope({name: one.view_as(slopes[name])}, 3e-3) == pytest.approx(entry, rel=2e-2)


@pytest.mark.parametrize("budget", [1, 20, 48])
def test_micro_batches_change_nothing(shifted, budget):
    whole, parts = shifted(), shifted(micro_batch_tokens=budget)
    batch = preferences()
    expected = whole.forward_backward(batch, DPO())
    metrics = parts.forward_backward(batch, DPO())
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert relative(gradients(parts), gradients(whole)) < 1e-5


def test_calls_of_forward_backward_add_up(shifted):
    engine, twice = shifted(), shifted()
    engine.forward_backward(preferences(), DPO())
    for _ in range(2):
        twice.forward_backward(preferences(), DPO())
    doubled = {name: 2 * g for name, g in gradients(engine).items()}
    assert relative(gradients(twice), doubled) < 1e-6


# What takes part


def test_losses_of_several_objectives_make_one_step(shifted):
    """DPO and 0.25 of a likelihood on other responses: the gradients add up, scaled."""
    engine = shifted()
    liked = pe.Preferences(preferences().groups[:1])
    parts = []
    for batch, objective in ((preferences(), DPO()), (liked, pe.objectives.NLL())):
        engine.forward_backward(batch, objective)
        parts.append(gradients(engine))
        engine._network.optimizer.zero_grad()
    engine.forward_backward(preferences(), DPO())
    scaled = engine.forward_backward(liked, pe.objectives.NLL(), scale=0.25)
    expected = {name: g + 0.25 * parts[1][name] for name, g in parts[0].items()}
    assert relative(gradients(engine), expected) < 1e-6
    assert scaled["loss"] == engine.forward_backward(liked, pe.objectives.NLL())["loss"]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, "1"])
def test_a_scale_that_is_none_leaves_gathered_gradients(engine, scale):
    engine.forward_backward(preferences(), DPO())
    before = gradients(engine)
    with pytest.raises(RequestError, match=r"\[update\] scale must be finite and > 0 but is"):
        engine.forward_backward(preferences(), DPO(), scale=scale)
    assert same_bits(gradients(engine), before)


def test_margins_start_at_exactly_zero(make_engine):
    for options in ({}, {"micro_batch_tokens": 1}, {"dtype": "bfloat16"}):
        metrics = make_engine(**options).forward_backward(preferences(), DPO(beta=0.1))
        assert metrics["rewards/margins"] == 0.0
        assert metrics["rewards/chosen"] == 0.0
        assert metrics["loss"] == pytest.approx(math.log(2), rel=2**-24)  # losses are float32


def test_groups_and_responses_without_a_comparison_are_not_computed(shifted):
    """Of groups 0 to 3 only 2 is compared, and of its responses (6, 2, 11) only 0 and 1: the
    prompt of 12, and 5 + 1 rows of the responses.
    """
    engine, other = shifted(), shifted()
    groups = preferences().groups
    batch = pe.Preferences(groups, [pe.Comparison(2, 0, 1), pe.Comparison(1, 0, 1, weight=0.0)])
    metrics = engine.forward_backward(batch, DPO())
    assert metrics["tokens"] == 18
    only = pe.Group(groups[2].prompt_ids, groups[2].responses[:2])
    expected = other.forward_backward(pe.Preferences([only], [pe.Comparison(0, 0, 1)]), DPO())
    assert metrics == expected
    assert same_bits(gradients(engine), gradients(other))


def test_many_comparisons_of_one_group_compute_each_response_once(shifted):
    """Eight responses, the first beats all others: the loss is the mean of the seven pairs'."""
    made = group(9, [4, 6, 1, 5, 7, 3, 2, 8], seed=5)
    batch = pe.Preferences([made], [pe.Comparison(0, 0, k) for k in range(1, 8)])
    engine = shifted()
    metrics = engine.forward_backward(batch, DPO())
    assert metrics["tokens"] == 9 + sum(len(r.token_ids) - 1 for r in made.responses)
    together = gradients(engine)
    pairs = []
    for k in range(1, 8):
        alone = shifted()
        one = pe.Preferences([made], [pe.Comparison(0, 0, k)])
        pairs.append((alone.forward_backward(one, DPO())["loss"], gradients(alone)))
    assert metrics["loss"] == pytest.approx(sum(loss for loss, _ in pairs) / 7, rel=1e-6)
    mean = {n: torch.stack([g[n] for _, g in pairs]).mean(0) for n in together}
    assert relative(together, mean) < 1e-5


def test_weights_are_relative(shifted):
    engine, other = shifted(), shifted()
    batch = preferences()
    tenfold = pe.Preferences(
        batch.groups, [dataclasses.replace(c, weight=10 * c.weight) for c in batch.comparisons]
    )
    one, ten = engine.forward_backward(batch, DPO()), other.forward_backward(tenfold, DPO())
    assert ten == pytest.approx(one, rel=1e-6)
    assert relative(gradients(other), gradients(engine)) < 1e-6


# The step


def test_update_is_forward_backward_and_step(make_engine):
    one, two = make_engine(learning_rate=0.01), make_engine(learning_rate=0.01)
    for _ in range(3):
        metrics = one.update(preferences(), DPO())
        halves = two.forward_backward(preferences(), DPO()) | two.step()
        assert metrics == halves
    assert same_bits(weights(one), weights(two))
    assert same_bits(moments(one), moments(two))
    assert one.step_count == 3
    assert metrics["step"] == 3.0
    assert metrics["lr"] == 0.01
    assert metrics["skipped"] == 0.0
    assert metrics["grad_norm"] > 0


def test_step_clears_the_gradients(engine):
    engine.forward_backward(preferences(), DPO())
    engine.step()
    assert gradients(engine) == {}


def test_a_toy_preference_is_learnt(make_engine):
    """One pair: from log 2 steadily down, and the chosen response wins ever more."""
    engine = make_engine(learning_rate=2e-3)
    batch = pe.Preferences([group(6, [8, 8], seed=3)], [pe.Comparison(0, 0, 1)])
    history = [engine.update(batch, DPO(beta=0.1)) for _ in range(12)]
    losses = [m["loss"] for m in history]
    assert losses[0] == pytest.approx(math.log(2), rel=2**-24)
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 0.25
    assert [m["rewards/accuracies"] for m in history] == [0.0] + [1.0] * 11
    margins = [m["rewards/margins"] for m in history]
    # beta 0.1 and one comparison: the loss is a function of the margin alone.
    assert losses == pytest.approx([math.log1p(math.exp(-z)) for z in margins], rel=1e-6)


def test_an_update_in_parts_gives_the_same_curve(make_engine):
    curves = []
    for budget in (None, 16):
        engine = make_engine(learning_rate=1e-3, micro_batch_tokens=budget)
        curves.append([engine.update(preferences(), DPO())["loss"] for _ in range(5)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


# Failures


class Broken(DPO):
    """DPO that fails, or gives gradients that are not finite, from its n-th call on."""

    def __init__(self, failure: BaseException | float, after: int = 0) -> None:
        super().__init__()
        object.__setattr__(self, "failure", failure)
        object.__setattr__(self, "calls", after)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        output = super().__call__(inputs)
        object.__setattr__(self, "calls", self.calls - 1)
        if self.calls >= 0:
            return output
        if isinstance(self.failure, BaseException):
            raise self.failure
        return dataclasses.replace(output, dlogps=output.dlogps * self.failure)


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 2])
def test_an_objective_that_raises_leaves_no_trace(make_engine, failure, after):
    """With micro-batches of one group it fails in the first, or after two have left gradients."""
    engine = make_engine(learning_rate=0.01, micro_batch_tokens=1)
    fresh = make_engine(learning_rate=0.01, micro_batch_tokens=1)
    before = weights(engine)
    with pytest.raises(type(failure)):
        engine.update(preferences(), Broken(failure, after))
    assert gradients(engine) == {}
    assert same_bits(weights(engine), before)
    assert engine.step_count == 0
    assert engine.update(preferences(), DPO()) == fresh.update(preferences(), DPO())
    assert same_bits(weights(engine), weights(fresh))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_skipped(make_engine, bad):
    engine, fresh = make_engine(learning_rate=0.01), make_engine(learning_rate=0.01)
    for one in (engine, fresh):
        one.update(preferences(), DPO())
    before, state = weights(engine), moments(engine)
    metrics = engine.update(preferences(), Broken(bad))
    assert metrics["skipped"] == 1.0
    assert metrics["step"] == 1.0
    assert same_bits(weights(engine), before)
    assert same_bits(moments(engine), state)
    assert engine.update(preferences(), DPO()) == fresh.update(preferences(), DPO())
    assert same_bits(weights(engine), weights(fresh))


def test_training_that_stays_not_finite_is_stopped(make_engine):
    engine = make_engine(learning_rate=0.01)
    before = weights(engine)
    for _ in range(MAX_SKIPPED_STEPS - 1):
        assert engine.update(preferences(), Broken(math.nan))["skipped"] == 1.0
    with pytest.raises(NonFiniteError) as caught:
        engine.update(preferences(), Broken(math.nan))
    assert str(caught.value) == (
        "[step] gradients were not finite 5 times in a row (last norm: nan); "
        "the weights are as before the first of them"
    )
    assert same_bits(weights(engine), before)
    assert engine.update(preferences(), DPO())["skipped"] == 0.0


def test_a_good_step_ends_a_row_of_skipped_ones(make_engine):
    engine = make_engine(learning_rate=1e-4)
    for _ in range(2):
        for _ in range(MAX_SKIPPED_STEPS - 1):
            engine.update(preferences(), Broken(math.nan))
        engine.update(preferences(), DPO())
    assert engine.step_count == 2


def test_an_objective_that_needs_no_reference_works_without_one(make_engine):
    class Likelihood(Objective):
        """Minus the mean log-prob of the chosen responses' tokens."""

        name = "likelihood"
        needs_reference = False

        def __call__(self, inputs: LossInputs) -> LossOutput:
            assert inputs.reference_token_logps is None
            count = len(inputs.policy_token_logps)
            loss = -inputs.policy_token_logps.mean()
            return LossOutput(loss, torch.full((count,), -1.0 / count), {})

    engine = make_engine(reference="none", learning_rate=1e-3)
    batch = pe.Preferences([group(4, [5, 6], seed=1)], [pe.Comparison(0, 0, 1)])
    losses = [engine.update(batch, Likelihood())["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]


BAD_ID = pe.Group([1], [pe.Response([2]), pe.Response([259])])
TOO_LONG = pe.Group(random_ids(510, 0), [pe.Response([2]), pe.Response([3, 4, 5])])


@pytest.mark.parametrize(
    ("batch", "objective", "message"),
    [
        (
            EMPTY,
            DPO(),
            "the batch must hold at least one comparison of positive weight but holds none",
        ),
        (
            pe.Preferences([group(3, [2, 2], 1)], [pe.Comparison(0, 0, 1, weight=0.0)]),
            DPO(),
            "the batch must hold at least one comparison of positive weight but holds none",
        ),
        (
            pe.Preferences([group(3, [2, 2], 1), BAD_ID], [pe.Comparison(1, 0, 1)]),
            DPO(),
            "groups[1].responses[1].token_ids must hold integers in [0, 259) "
            "but responses[1].token_ids[0] = 259",
        ),
        (
            pe.Preferences([TOO_LONG], [pe.Comparison(0, 0, 1)]),
            DPO(),
            "groups[0] must fit 512 positions but prompt (510 tokens) and responses[1] (3) "
            "have 513",
        ),
        ([pe.Comparison(0, 0, 1)], DPO(), "batch must be Preferences but is list"),
        (EMPTY, "dpo", "objective must be an Objective but is str"),
    ],
    ids=["empty", "weight-0", "bad-id", "too-long", "no-preferences", "no-objective"],
)
def test_update_names_what_it_refuses(engine, batch, objective, message):
    with pytest.raises(RequestError) as caught:
        engine.update(batch, objective)
    assert str(caught.value) == f"[update] {message}"
    assert gradients(engine) == {}


def test_update_without_the_reference_it_needs_is_refused(make_engine):
    with pytest.raises(RequestError) as caught:
        make_engine(reference="none").update(preferences(), DPO())
    assert (
        str(caught.value)
        == "[update] dpo needs a reference but the engine has none (reference='none')"
    )


def test_step_without_gradients_is_refused(engine):
    with pytest.raises(RequestError) as caught:
        engine.step()
    assert str(caught.value) == "[step] there are no gradients: call forward_backward first"
