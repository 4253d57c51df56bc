from __future__ import annotations

import json
import math

import pytest
from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import CheckpointError, ConfigError, RewardError
from pyengine.loops import Online
from pyengine.objectives import DPO, SimPO
from pyengine.preferences import BestWorst, RewardFunction

PROMPTS = [f"prompt {i}" for i in range(5)]


def happiness(completions):
    return [float(c.count("good") + c.count("happy") - c.count("bad")) for c in completions]


def make(engine=None, reward=happiness, **changes):
    settings = {
        "source": RewardFunction(reward, timeout_s=10),
        "pairing": BestWorst(),
        "objective": DPO(),
        "sampling": SamplingParams(n=4, max_tokens=6, seed=2),
        "prompts_per_round": 3,
    } | changes
    return Online(engine or FakeEngine(), settings.pop("prompts", PROMPTS), **settings)


def test_report_has_the_names_people_know():
    loop = make()
    report = next(iter(loop.run(1)))
    assert report["round"] == report["step"] == 1
    assert {
        "objective/scores", "objective/kl", "objective/entropy", "objective/scores_margin",
        "loss", "lr", "grad_norm", "val/contain_eos_token", "completions/mean_length",
        "pairs/ties", "pairs/equal", "reward/abstain", "reward/error", "tokens_per_s",
        "time/generate_s", "time/reward_s", "time/update_s", "time/round_s",
    } <= report.keys()  # fmt: skip
    json.dumps(report, allow_nan=False)


def test_report_arithmetic():
    engine = FakeEngine()
    engine.weight = 0.25
    loop = make(engine)
    report = loop.run_round()
    responses = [r for g in loop.last_groups for r in g.responses]
    assert len(responses) == 12
    scores = happiness([r.text for r in responses])
    assert report["objective/scores"] == pytest.approx(sum(scores) / 12)
    # the fake policy is below its reference by the weight at every token
    tokens = sum(len(r.token_ids) for r in responses)
    assert report["objective/kl"] == pytest.approx(-0.25 * tokens / 12)
    assert report["objective/entropy"] == pytest.approx(
        -math.fsum(x for r in responses for x in r.logprobs) / 12
    )
    stopped = sum(r.finish_reason == "stop" for r in responses)
    assert report["val/contain_eos_token"] == stopped / 12
    assert report["completions/max_length"] == max(len(r.token_ids) for r in responses)


def test_kl_of_the_start_is_exactly_zero():
    assert make().run_round()["objective/kl"] == 0.0


def test_no_kl_without_a_reference():
    engine = FakeEngine()
    engine.has_reference = False
    assert "objective/kl" not in make(engine, objective=SimPO()).run_round()


def test_request_ids_never_repeat_and_do_not_depend_on_the_split():
    engine = FakeEngine()
    list(make(engine).run(6))
    assert engine.request_ids == list(range(18))


def test_winners_have_the_best_reward_and_losers_the_worst():
    engine = FakeEngine()
    list(make(engine).run(3))
    assert len(engine.updates) == 3
    for batch in engine.updates:
        for c in batch.comparisons:
            scores = happiness([r.text for r in batch.groups[c.group].responses])
            assert scores[c.winner] == max(scores) > min(scores) == scores[c.loser]


def test_ties_never_train_and_are_counted():
    engine = FakeEngine()
    loop = make(engine, reward=lambda completions: [1.0] * len(completions))
    reports = list(loop.run(2))
    assert engine.updates == []
    assert engine.weight == 0.0
    assert [r["pairs/ties"] for r in reports] == [3, 3]
    assert [r["rounds_without_update"] for r in reports] == [1, 2]
    assert "loss" not in reports[1]


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), "text"])
def test_invalid_rewards_never_train(bad):
    def reward(completions):
        return [bad if i % 4 == 3 else s for i, s in enumerate(happiness(completions))]

    engine = FakeEngine()
    report = make(engine, reward=reward).run_round()
    assert report["reward/abstain"] + report["reward/error"] == 3
    assert all(3 not in (c.winner, c.loser) for b in engine.updates for c in b.comparisons)


def test_a_failing_reward_function_trains_nothing_and_says_what_happened():
    def reward(completions):
        raise RuntimeError("judge is away")

    engine = FakeEngine()
    loop = make(engine, reward=reward)
    with pytest.raises(
        RewardError, match=r"round 1 .* 50% of its 12 responses but 0 have one"
    ) as caught:
        loop.run_round()
    assert "12 failed" in str(caught.value)
    assert "judge is away" in str(caught.value)
    assert engine.updates == []
    assert loop.round == 0


def test_a_round_after_a_failed_one_makes_the_same_draws():
    calls = []

    def reward(completions):
        calls.append(list(completions))
        return [None] * len(completions) if len(calls) == 1 else happiness(completions)

    loop = make(reward=reward)
    with pytest.raises(RewardError):
        loop.run_round()
    loop.run_round()
    assert calls[0] == calls[1]


def test_min_valid_fraction_zero_goes_on_without_rewards():
    loop = make(reward=lambda completions: [None] * len(completions), min_valid_fraction=0.0)
    report = loop.run_round()
    assert report["objective/scores"] is None
    assert report["pairs/too_few"] == 3


def test_columns_follow_their_prompts():
    seen = []

    def reward(prompts, completions, number):
        seen.extend(zip(prompts, number, strict=True))
        return happiness(completions)

    list(make(reward=reward, columns={"number": list(range(5))}).run(2))
    assert len(seen) == 24
    assert all(prompt == f"prompt {number}" for prompt, number in seen)


def test_updates_per_round_averages_metrics_but_not_the_learning_rate():
    # the fake's losses are 0.5 and 0.25, its learning rates 0.1 and 0.2
    report = make(updates_per_round=2).run_round()
    assert report["loss"] == pytest.approx(0.375)
    assert report["lr"] == pytest.approx(0.2)
    assert report["step"] == 2


def test_resumed_run_equals_uninterrupted_run():
    whole = FakeEngine()
    loop = make(whole)
    list(loop.run(7))

    first = FakeEngine()
    half = make(first)
    list(half.run(3))
    state = json.loads(json.dumps(half.state_dict()))
    second = FakeEngine()
    second.weight, second.step_count = first.weight, first.step_count
    rest = make(second)
    rest.load_state_dict(state)
    list(rest.run(4))
    assert second.weight == whole.weight
    assert rest.state_dict() == loop.state_dict()
    assert state | {} == half.state_dict()
    assert (state["epoch"], state["cursor"]) == (1, 4)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 5}, "seed"),
        ({"prompts_per_round": 2}, "prompts_per_round"),
        ({"prompts": PROMPTS[::-1]}, "prompts_digest"),
    ],
)
def test_state_of_another_run_is_refused(changes, name):
    state = make().state_dict()
    with pytest.raises(CheckpointError, match=f"{name} must be what the saved run had"):
        make(**changes).load_state_dict(state)


def test_held_out_evaluation_every_other_round():
    loop = make(eval_prompts=["a", "b"], eval_every=2)
    reports = list(loop.run(4))
    assert ["eval/objective/scores" in r for r in reports] == [False, True, False, True]
    assert "time/eval_s" in reports[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts must not be empty"),
        ({"prompts_per_round": 0}, "prompts_per_round must be an integer >= 1 but is 0"),
        ({"updates_per_round": 1.5}, "updates_per_round must be an integer >= 1 but is 1.5"),
        ({"eval_every": -1}, "eval_every must be an integer >= 0 but is -1"),
        ({"eval_every": 2}, "eval_every = 2 needs eval_prompts"),
        ({"min_valid_fraction": 1.5}, r"min_valid_fraction must be in \[0, 1\] but is 1.5"),
        ({"columns": {"x": [1]}}, r"columns\['x'\] must have one value a prompt \(5\) but has 1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_evaluate_needs_prompts():
    with pytest.raises(ConfigError, match="evaluate needs eval_prompts"):
        make().evaluate()
