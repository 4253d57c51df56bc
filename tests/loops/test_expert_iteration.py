"""Expert iteration: what is kept of the samples, and the weights that imitation begins with."""

from __future__ import annotations

import pytest
from loops.loop_cases import make, named

from pyengine.errors import ConfigError
from pyengine.loops import ExpertIteration
from pyengine.loops.filtering import kept_rewards
from pyengine.objectives import DPO, NLL
from pyengine.preferences import Feedback, Group, Response

GROUP = Group([1], [Response(ids) for ids in ([1], [2], [1], [3], [], [4])])
FEEDBACK = Feedback.from_rewards([[0.5, 0.9, 0.7, 0.1, 0.8, None]])


@pytest.mark.parametrize(
    ("options", "kept", "counts"),
    [
        # responses 0 and 2 are the same, 4 has no tokens, 5 no reward
        (
            {"above": None, "best": 1, "dedupe": True},
            {1: 0.9},
            {"kept": 1, "duplicates": 1, "beyond": 2, "failed": 2},
        ),
        (
            {"above": 0.1, "best": None, "dedupe": True},
            {1: 0.9, 2: 0.7},
            {"kept": 2, "below": 1, "duplicates": 1, "failed": 2},
        ),
        (
            {"above": 0.1, "best": 10, "dedupe": False},
            {0: 0.5, 1: 0.9, 2: 0.7},
            {"kept": 3, "below": 1, "failed": 2},
        ),
    ],
)
def test_what_is_kept(options, kept, counts):
    table, found = kept_rewards([GROUP], FEEDBACK, **options)
    assert table == [[kept.get(k) for k in range(6)]]
    zero = dict.fromkeys(("kept", "below", "duplicates", "beyond", "failed"), 0)
    assert found == zero | counts | {"prompts": 1}


def test_the_best_of_each_prompt_is_imitated():
    loop = make(ExpertIteration, NLL())
    report = loop.run_round()
    (batch,) = loop.engine.updates
    for row in batch.feedback.rewards:
        assert [r for r in row if r is not None] == [max(r for r in row if r is not None)]
    assert [s for row in batch.feedback.status for s in row].count("value") == 3
    assert (report["filter/kept"], report["filter/prompts"]) == (3, 3)
    assert report["reward/value"] == 12  # all were judged


def test_minibatches_are_of_kept_responses():
    loop = make(ExpertIteration, NLL(), best=2, batch_size=4, epochs=3)
    report = loop.run_round()
    sizes = [sum(map(len, (g.responses for g in b.groups))) for b in loop.engine.updates]
    assert sizes == [4, 2] * 3
    assert report["updates"] == loop.most_updates == 6


def test_learning_goes_on_from_the_last_weights():
    loop = make(ExpertIteration, NLL())
    list(loop.run(2))
    assert named(loop.engine, "load") == []


def test_learning_begins_at_the_base_with_new_moments():
    loop = make(ExpertIteration, NLL(), start="base")
    engine, seen = loop.engine, []
    original = engine.update

    def update(batch, objective):
        seen.append(engine.weight)
        return original(batch, objective)

    engine.update = update
    list(loop.run(3))
    assert seen == [0.0, 0.0, 0.0]
    assert named(engine, "load") == [("base", "reset")] * 3
    samples = [g.responses[0].logprobs for g in loop.last_groups]
    assert samples  # drawn by the last weights, not the base's
    assert named(engine, "generate") == [(None,)] * 3


def test_nothing_good_enough_leaves_the_weights():
    loop = make(ExpertIteration, NLL(), above=2.0, best=None, start="base")
    report = loop.run_round()
    assert (report["filter/below"], report["updates"]) == (12, 0)
    assert report["rounds_without_update"] == 1
    assert named(loop.engine, "load") == []


def test_it_makes_no_comparisons():
    with pytest.raises(ConfigError, match=r"dpo does not fit source by_digest: .*makes none"):
        make(ExpertIteration, DPO())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "first"}, "start must be one of last, base"),
        ({"best": 0}, "best must be an integer >= 1"),
        ({"above": float("nan")}, "above must be finite or None"),
        ({"best": None}, "one of above, above_column and best must say"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=rf"\[ExpertIteration\] {message}"):
        make(ExpertIteration, NLL(), **changes)
