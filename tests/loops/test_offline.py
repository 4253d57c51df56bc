"""Epochs over a data set: which examples a step has, what is held out, resuming."""

from __future__ import annotations

import json

import pytest
from tiny_batches import same_bits, weights

import pyengine as pe
from pyengine import objectives
from pyengine.errors import CheckpointError, ConfigError, RequestError
from pyengine.loops.offline import held_out_split
from pyengine.preferences import Comparison, Feedback, Group, Response
from pyengine.preferences.subset import num_examples, take_examples


def group(g, responses=2):
    return Group([10 + g, 11], [Response([20 + g, 30 + k, 2]) for k in range(responses)])


def data(groups=5, **options):
    comparisons = [Comparison(g, 0, 1, weight=1 + g) for g in range(groups)]
    return pe.Preferences([group(g) for g in range(groups)], comparisons, **options)


@pytest.fixture
def engine(tiny_model):
    return pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-2)


def make(engine, examples=None, **changes):
    options = {"objective": objectives.DPO(), "batch_size": 2} | changes
    return pe.loops.Offline(engine, examples or data(), options.pop("objective"), **options)


def test_an_epoch_has_every_example_once_and_a_last_batch_of_what_is_left(engine):
    loop = make(engine, epochs=2)
    assert (loop.rounds_per_epoch, loop.rounds) == (3, 6)
    for epoch in range(2):
        batches = [loop.batch(3 * epoch + i) for i in range(3)]
        assert [len(b.comparisons) for b in batches] == [2, 2, 1]
        weights = sorted(c.weight for b in batches for c in b.comparisons)
        assert weights == [1, 2, 3, 4, 5]


def test_epochs_have_orders_of_their_own_by_seed(engine):
    def order(loop, epoch):
        return [c.weight for i in range(3) for c in loop.batch(3 * epoch + i).comparisons]

    big = data(40)
    first = make(engine, big, batch_size=16)
    assert order(first, 0) != order(first, 1)
    assert order(first, 0) == order(make(engine, big, batch_size=16), 0)
    assert order(first, 0) != order(make(engine, big, batch_size=16, seed=1), 0)
    assert order(make(engine, big, batch_size=16, shuffle=False), 0) == list(range(1, 41))


def test_reports_have_the_names_people_know(engine):
    loop = make(engine, eval_data=data(2))
    reports = list(loop.run(3))
    assert [r["round"] for r in reports] == [r["step"] for r in reports] == [1, 2, 3]
    assert reports[-1]["epoch"] == 1.0
    assert {"loss", "rewards/margins", "lr", "grad_norm", "tokens_per_s"} <= reports[0].keys()
    json.dumps(reports, allow_nan=False)
    metrics = loop.evaluate().metrics()
    assert metrics["eval/examples"] == 2
    assert {"eval/loss", "eval/rewards/accuracies"} <= metrics.keys()


def test_evaluating_is_the_loss_of_an_update_and_changes_nothing(engine):
    loop = make(engine, eval_data=data(3))
    list(loop.run(2))
    before = engine.step_count
    held_out = loop.evaluate().metrics()
    assert held_out == loop.evaluate().metrics()
    assert engine.step_count == before
    assert not list(engine.named_gradients())
    assert held_out["eval/loss"] == engine.forward_backward(data(3), objectives.DPO())["loss"]


def test_a_resumed_loop_ends_with_the_same_bits(tiny_model, engine, tmp_path):
    whole = make(engine, epochs=2)
    list(whole.run(6))
    first = make(pe.Engine.from_pretrained(tiny_model, dtype="float32", learning_rate=1e-2))
    list(first.run(2))
    first.engine.save_checkpoint(tmp_path / "c", extra=first.state_dict())
    other = pe.Engine.load_checkpoint(tmp_path / "c")
    rest = make(other, epochs=2)
    rest.load_state_dict(other.extra)
    list(rest.run(4))
    assert same_bits(weights(other), weights(engine))


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"seed": 5}, "seed"), ({"batch_size": 3}, "batch_size"), ({"shuffle": False}, "shuffle")],
)
def test_the_state_of_another_run_is_refused(engine, changes, name):
    state = make(engine).state_dict()
    with pytest.raises(CheckpointError, match=f"{name} must be what the saved run had"):
        make(engine, **changes).load_state_dict(state)
    with pytest.raises(CheckpointError, match="data_digest"):
        make(engine, data(6)).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1 but is 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer >= 1 but is 1.5"),
        ({"objective": objectives.KTO(), "examples": pe.Preferences([])}, "at least one response"),
    ],
)
def test_bad_settings_are_refused(engine, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(engine, **changes)


def labelled():
    feedback = Feedback.from_labels([[True, False], [False, True], [True, True]])
    return pe.Preferences([group(g) for g in range(3)], feedback=feedback)


def test_responses_are_examples_of_their_own_and_share_their_prompt():
    """Of 6 responses, 1 and 3 and 2: one of the first prompt, both of the second."""
    assert num_examples(labelled(), "response") == 6
    batch = take_examples(labelled(), "response", [1, 3, 2])
    assert [len(g.responses) for g in batch.groups] == [1, 2]
    assert [r.token_ids[1] for g in batch.groups for r in g.responses] == [31, 30, 31]
    assert batch.feedback.labels == [[False], [False, True]]


def test_comparisons_keep_their_further_responses_and_feedback():
    whole = data(4, feedback=Feedback.from_rewards([[1.0, 0.0]] * 4))
    whole.comparisons = [*whole.comparisons, Comparison(3, 1, 0, auxiliary=[(0, 1)])]
    batch = take_examples(whole, "comparison", [4, 2])
    assert [g.prompt_ids[0] for g in batch.groups] == [10, 12, 13]
    assert [(c.group, c.winner, c.further) for c in batch.comparisons] == [
        (2, 1, [(0, 1)]),
        (1, 0, []),
    ]
    assert batch.feedback.rewards == [[1.0, 0.0]] * 3


def test_a_split_keeps_a_prompts_examples_together():
    whole = data(10)
    train, held_out = held_out_split(whole, "comparison", 0.3, seed=1)
    assert (len(train.groups), len(held_out.groups)) == (7, 3)
    prompts = [g.prompt_ids[0] for g in [*train.groups, *held_out.groups]]
    assert sorted(prompts) == list(range(10, 20))
    with pytest.raises(RequestError, match="fraction must leave prompts on both sides"):
        held_out_split(whole, "comparison", 0.01, seed=1)


@pytest.mark.parametrize("name", ["kto", "bco", "pmpo", "unlikelihood", "nll"])
def test_labelled_responses_run(engine, name):
    loop = make(engine, labelled(), objective=objectives.get(name), batch_size=4)
    assert [r["skipped"] for r in loop.run(2)] == [0, 0]


FURTHER = {"dpo_degree": 2, "dpo_rationale": 1, "slic": 1, "xpo": 1, "srpo": 4}


@pytest.mark.parametrize(("name", "count"), FURTHER.items())
def test_objectives_of_further_responses_run_an_epoch(engine, name, count):
    """What no source gives, comparisons built by hand hold."""
    groups = [group(g, responses=6) for g in range(4)]
    comparisons = [
        Comparison(g, 0, 1, auxiliary=[(g, 2 + i) for i in range(count)]) for g in range(4)
    ]
    loop = make(engine, pe.Preferences(groups, comparisons), objective=objectives.get(name))
    reports = list(loop.run(loop.rounds))
    assert [r["step"] for r in reports] == [1, 2]
    assert all(r["grad_norm"] > 0 for r in reports)


def test_a_kl_of_other_prompts_needs_another_prompt(engine):
    """One step of two prompts, and one of a single prompt, which is counted."""
    feedback = Feedback.from_labels([[True, False], [False, True]])
    two = pe.Preferences([group(0), group(1)], feedback=feedback)
    with pytest.raises(ConfigError, match="at least two prompts for kto"):
        make(engine, take_examples(two, "group", [0]), objective=objectives.KTO())
    loop = make(engine, two, objective=objectives.KTO(), batch_size=3, shuffle=False)
    reports = list(loop.run(2))
    assert [r["rounds_without_update"] for r in reports] == [0, 1]
    assert [r["step"] for r in reports] == [1, 1]
