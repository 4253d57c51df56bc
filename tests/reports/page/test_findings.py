"""Each rule says what the figures are, on either side of its threshold; nothing without them."""

from __future__ import annotations

import dataclasses

import pytest
from reports.page.recorded import evaluated, record, rounds

from pyengine.recipes.schema.load import load_recipe
from pyengine.reports.page.findings.available import RULES, findings_of
from pyengine.reports.page.findings.chosen_falls import chosen_falls
from pyengine.reports.page.findings.kl_runs_away import kl_runs_away
from pyengine.reports.page.findings.length_hacking import length_hacking
from pyengine.reports.page.findings.no_spread import no_spread
from pyengine.reports.page.findings.reward_moved import reward_moved
from pyengine.reports.page.findings.swapped_judge import swapped_judge

DPO = load_recipe("demo")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_without_figures_nothing_is_said(rule):
    assert rule(record()) is None
    assert (
        rule(record([{"round": 0}, {"round": 1, "loss": None, "objective/kl": float("nan")}]))
        is None
    )
    assert findings_of(record([{"round": 1, "step": 1}])) == []


def test_held_out_reward_is_paired_by_prompt():
    """Gains of 0.25, 0.5 and 0.75: a mean of 0.5 and an error of 0.25 / sqrt(3) = 0.144."""
    samples = evaluated(0, (0.0, 0.5), (1.0,), (2.0,)) + evaluated(4, (0.5,), (1.5,), (2.75,))
    found = reward_moved(record(samples=samples))
    assert found.level == "fine"
    assert found.text == (
        "Held-out reward rose: +1.08 before training, +1.58 after round 4, a change of +0.5 ± "
        "0.144 over 3 prompts, each paired with itself."
    )
    back = reward_moved(record(samples=evaluated(0, (1.0,), (2.0,)) + evaluated(2, (0.5,), (1.5,))))
    assert back.level == "worry"
    assert back.text.startswith("Held-out reward fell: +1.5 before training, +1 after round 2")
    noisy = reward_moved(
        record(samples=evaluated(0, (0.0,), (0.0,)) + evaluated(2, (1.0,), (-0.5,)))
    )
    assert noisy.level == "watch"
    assert "did not change by more than chance explains" in noisy.text


def test_training_reward_where_nothing_was_held_out():
    found = reward_moved(record(rounds(objective__scores=[0.0, 0.0, *[0.5] * 6, 1.0, 1.0])))
    assert found.level == "fine"
    assert "rose: +0 in rounds 1 to 2, +1 in rounds 9 to 10. No two evaluations" in found.text
    short = reward_moved(record(rounds(objective__scores=[0.0, 1.0])))
    assert short.level == "watch"
    assert "changed by what may be chance: +0 in round 1, +1 in round 2" in short.text


@pytest.mark.parametrize(
    ("chosen", "rejected", "level", "words"),
    [
        (0.5, -0.5, "fine", "not less likely than under the reference (rewards/chosen in rounds 9 "
                            "to 10: +0.5, rejected -0.5)"),
        (-0.5, -2.0, "watch", "no worry while the margin's gain, 1.5, exceeds the fall, 0.5"),
        (-0.5, -1.0, "watch", "no worry while the margin's gain, 0.5, exceeds the fall, 0.5"),
        (-0.5, -0.9, "worry", "0.5 lost, 0.4 of margin"),
    ],
)  # fmt: skip
def test_chosen_log_prob_against_the_reference(chosen, rejected, level, words):
    ends = [0.0] * 8 + [chosen] * 2, [0.0] * 8 + [rejected] * 2
    rows = rounds(rewards__chosen=ends[0], rewards__rejected=ends[1])
    found = chosen_falls(record(rows, recipe=DPO))
    assert found.level == level
    assert words in found.text


def test_chosen_log_prob_within_its_noise_and_held_out():
    """The last two of ten rounds are -0.3 and 0.1: a mean of -0.1, an error of 0.2."""
    rows = rounds(rewards__chosen=[0.0] * 8 + [-0.3, 0.1], rewards__rejected=[0.0] * 10)
    found = chosen_falls(record(rows, recipe=DPO))
    assert found.level == "fine"
    assert "by more than noise explains (rewards/chosen in rounds 9 to 10: -0.1" in found.text
    rows[0] |= {"eval/rewards/chosen": 0.0, "eval/rewards/rejected": 0.0}
    rows[9] |= {"eval/rewards/chosen": -1.0, "eval/rewards/rejected": -4.0}
    found = chosen_falls(record(rows, recipe=DPO))
    assert found.level == "watch"
    assert "(eval/rewards/chosen after round 10: -1, rejected -4)" in found.text


def test_a_single_round_says_nothing_of_its_noise():
    rows = rounds(rewards__chosen=[0.0, -0.5], rewards__rejected=[0.0, 0.1])
    found = chosen_falls(record(rows, recipe=DPO))
    assert found.level == "watch"
    assert "-0.5, rejected +0.1), by what may be the noise of a single round" in found.text


def test_without_a_reference_only_given_data_say_something(tmp_path):
    ends = [-10.0] * 8 + [-14.0] * 2, [-10.0] * 8 + [-12.0] * 2
    rows = rounds(logps__chosen=ends[0], logps__rejected=ends[1])
    online = dataclasses.replace(DPO, objective={"name": "simpo"})
    assert chosen_falls(record(rows, recipe=online)) is None
    (tmp_path / "r.yaml").write_text("loop: reward_model\nmodel: m\ndata: d.jsonl\n")
    rows[1] |= {"rewards/chosen": -1.0, "rewards/rejected": -2.0}  # a reward model's own
    assert chosen_falls(record(rows, recipe=load_recipe(tmp_path / "r.yaml"))) is None
    (tmp_path / "o.yaml").write_text("loop: offline\nmodel: m\ndata: d.jsonl\nobjective: simpo\n")
    found = chosen_falls(record(rows, recipe=load_recipe(tmp_path / "o.yaml")))
    assert found.level == "worry"
    assert (
        "(change of logps/chosen in rounds 9 to 10 against rounds 1 to 2: -4, rejected -2)"
        in found.text
    )
    assert "4 lost, -2 of margin" in found.text


@pytest.mark.parametrize(
    ("lengths", "rewards", "correlation", "level", "words"),
    [
        ([20.0, 30.0], [0.1, 0.5], [0.4, 0.2], "worry", "(+50 %), reward from +0.1 to +0.5, and "
         "longer answers to the same prompt get more: correlation +0.3, mean of 2 rounds"),
        ([20.0, 30.0], [0.1, 0.5], [0.1, -0.3], "watch",
         "get little more, or less: correlation -0.1"),
        ([20.0, 30.0], [0.1, 0.5], [None], "watch", "is not on file"),
        ([20.0, 23.0], [0.1, 0.5], [0.9], "fine", "length has not grown much"),
        ([20.0, 30.0], [0.5, 0.1], [0.9], "fine", "length grew, but reward did not rise with it"),
    ],
)  # fmt: skip
def test_length_hacking(lengths, rewards, correlation, level, words):
    found = length_hacking(record(rounds(
        completions__mean_length=lengths, objective__scores=rewards,
        objective__length_correlation=correlation,
    )))  # fmt: skip
    assert found.level == level
    assert words in found.text
    assert found.text.startswith("Training responses went from 20 tokens in round 1 to ")


def test_length_of_evaluations_comes_first():
    rows = rounds(completions__mean_length=[5.0, 50.0], objective__scores=[0.0, 1.0])
    for row, length, reward in zip(rows, (20.0, 21.0), (0.0, 1.0), strict=True):
        row |= {"eval/completions/mean_length": length, "eval/objective/scores": reward}
    assert length_hacking(record(rows)).text.startswith(
        "Held-out responses went from 20 tokens after round 1 to 21 after round 2 (+5 %)"
    )


@pytest.mark.parametrize(("turned", "level"), [(1, "fine"), (2, "watch"), (6, "worry")])
def test_a_judge_that_turns_with_the_order(turned, level):
    rows = rounds(judge__both_orders=[10, 10], judge__swap_disagreements=[0, turned])
    found = swapped_judge(record(rows))
    assert found.level == level
    assert f"disagreed with itself on {turned} of 20 pairs ({5 * turned} %)" in found.text
    one_order = rounds(judge__both_orders=[0], judge__swap_disagreements=[0])
    assert swapped_judge(record(one_order)) is None


def test_rewards_without_spread():
    equal = rounds(frac_reward_zero_std=[0.0, 0.5], rounds_without_update=[0, 1])
    found = no_spread(record(equal))
    assert found.level == "worry"
    assert found.text.startswith(
        "In round 2, 50 % of the prompts had responses of equal reward; 1 of 2 rounds made no "
        "update. Equal rewards have neither a better response nor an advantage: loss 0, nothing"
    )
    fine = rounds(frac_reward_zero_std=[0.0, 0.25], rounds_without_update=[0, 0])
    assert no_spread(record(fine)).level == "fine"
    idle = no_spread(record(rounds(rounds_without_update=[1, 2])))
    assert (idle.level, idle.text) == (
        "worry", "2 of 2 rounds made no update. Those taught nothing.",
    )  # fmt: skip
    assert no_spread(record(rounds(rounds_without_update=[0, 0]))) is None


def test_kl_that_runs_away():
    near = kl_runs_away(
        record(rounds(objective__kl=[0.0, 2.0], completions__mean_length=[20.0] * 2))
    )
    assert (near.level, near.text) == (
        "fine", "KL to the reference is 2 nats a response in round 2, 0.1 a token, and is not "
        "running away.",
    )  # fmt: skip
    far = kl_runs_away(
        record(rounds(objective__kl=[0.0, 12.0], completions__mean_length=[20.0] * 2))
    )
    assert far.level == "worry"
    assert "12 nats a response in round 2, 0.6 a token: the policy has left it" in far.text
    grows, falls = [0.0, 1.0, 2.0, 3.0], [0.1, 0.5, 0.4, 0.3]
    past = kl_runs_away(record(rounds(objective__kl=grows, objective__scores=falls)))
    assert past.level == "worry"
    assert "after 1 in round 2, and reward fell from +0.5 to +0.3: the policy buys" in past.text
    pays = kl_runs_away(record(rounds(objective__kl=[*grows[:3], 2.9], objective__scores=grows)))
    assert pays.level == "fine"
    assert "after 1 in round 2, and reward went from +1 to +3: it is not running away." in pays.text
    fast = kl_runs_away(record(rounds(objective__kl=grows)))
    assert (fast.level, fast.text) == (
        "watch",
        "KL to the reference is 3 nats a response in round 4, after 1 in round 2: it grows "
        "faster and faster.",
    )  # fmt: skip
