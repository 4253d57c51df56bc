"""What a round does about a judge that fails: stop, skip, ask again; all of it counted."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import ConfigError, RequestError, RewardError
from pyengine.loops import Online, steps
from pyengine.loops.steps import JudgePolicy
from pyengine.objectives import DPO
from pyengine.preferences import BestWorst, Feedback


class Failing:
    """Fails `times` times, then judges by length."""

    name = "failing"

    def __init__(self, times, error=None):
        self.times, self.asked = times, 0
        self.error = error or ConnectionError("judge is away")

    def __call__(self, groups):
        self.asked += 1
        if self.asked <= self.times:
            raise self.error
        return Feedback.from_rewards(
            [[float(len(r.token_ids)) for r in g.responses] for g in groups]
        )


def make(source, **policy):
    return Online(
        FakeEngine(), ["a", "b"], source=source, pairing=BestWorst(), objective=DPO(),
        sampling=SamplingParams(n=4, max_tokens=6), judge=JudgePolicy(**policy),
    )  # fmt: skip


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(steps.time, "sleep", found.append)
    return found


def test_it_stops_by_default_and_the_round_is_open(waits):
    loop = make(Failing(1))
    with pytest.raises(
        RewardError, match=r"round 1 the judge raised ConnectionError: judge is away"
    ):
        loop.run_round()
    assert (loop.round, loop.moved, waits) == (0, False, [])
    assert loop.run_round()["round"] == 1


def test_it_is_asked_again_with_growing_pauses(waits):
    loop = make(Failing(3), retries=3, backoff_s=2.0)
    report = loop.run_round()
    assert report["judge/retries"] == 3
    assert waits == [2.0, 4.0, 8.0]
    assert report["step"] == 1


def test_no_retry_begins_after_the_deadline(waits):
    source = Failing(9)
    with pytest.raises(RewardError, match=r"\(asked 2 times\)"):
        make(source, retries=9, backoff_s=2.0, deadline_s=3.0).run_round()
    assert source.asked == 2
    assert waits == [2.0]


def test_a_skipped_round_trains_nothing_and_is_counted(waits):
    loop = make(Failing(2), on_failure="skip")
    reports = list(loop.run(3))
    assert [r["rounds_skipped"] for r in reports] == [1, 2, 2]
    assert [r["rounds_without_update"] for r in reports] == [1, 2, 2]
    assert [r["step"] for r in reports] == [0, 0, 1]


def test_too_few_rewards_are_a_failure_too(waits):
    def half(groups):
        return Feedback.from_rewards([[1.0, None, None, None] for _ in groups])

    loop = make(half, on_failure="skip")
    assert loop.run_round()["rounds_skipped"] == 1


def test_what_is_wrong_with_the_request_is_not_asked_again(waits):
    source = Failing(1, RequestError("[judge] columns must be there"))
    with pytest.raises(RequestError, match="columns must be there"):
        make(source, retries=5).run_round()
    assert source.asked == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("on_failure", "ignore"), ("retries", -1), ("retries", 1.5), ("deadline_s", 0.0)],
)
def test_bad_policies_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"\\[judge\\] {field} must be"):
        JudgePolicy(**{field: value})
