"""A judge that waits for another machine is asked while the round is sampled: the time of the
longer of the two, and the bits, counts and failures of one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine
from judge_server import Server, after, answer, status
from loops.loop_cases import make
from preferences.remote.scripted import endpoint_of, one_group, shown

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.errors import RewardError
from pyengine.loops import JudgePolicy, Online, SelfPlay, TwoPlayer, overlap, steps
from pyengine.objectives import DPO, NashMD
from pyengine.preferences import (
    ByReward,
    DerivedSource,
    FunctionSource,
    RankedSource,
    RemoteJudge,
    RemoteScores,
    RewardSum,
)
from pyengine.preferences.allocations.available import ALLOCATIONS
from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.judge_matrix import JudgeMatrix

PROMPTS = [f"prompt {i}" for i in range(4)]


def by_length(_: int, body: dict) -> Any:
    """A response of two words fails; of others the longer is better."""
    texts = shown(body)
    if any(len(text.split()) == 2 for text in texts):
        return status(400)
    if len(texts) == 1:
        return answer({"score": 1 + len(texts[0]) % 9})
    return answer({"verdict": "A" if len(texts[0]) > len(texts[1]) else "B"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(overlap, "MIN_RESPONSES", 2)
    with Server(by_length) as server:
        yield server


def endpoint(server: Server, **fields: Any) -> Any:
    return endpoint_of(server, api_key_env=None, **fields)


def loop_of(cls: Any = Online, objective: Any = None, engine: Any = None, **changes: Any) -> Any:
    settings = {
        "prompts": PROMPTS,
        "prompts_per_round": len(PROMPTS),
        "sampling": SamplingParams(n=2, max_tokens=6, seed=2),
        "min_valid_fraction": 0.2,
    }
    return make(cls, objective or DPO(), engine, **(settings | changes))


def untimed(report: dict) -> dict:
    return {k: v for k, v in report.items() if not k.startswith(("time/", "tokens_per_s"))}


def test_slices_by_hand() -> None:
    """At least 16 responses each, no more slices than asked for or than there are prompts."""
    assert [overlap.slices(8, n, 4) for n in (1, 2, 4, 6, 8, 64)] == [1, 1, 2, 3, 4, 4]
    assert [overlap.slices(p, 64, 4) for p in (1, 2, 3, 9)] == [1, 2, 3, 4]
    assert overlap.bounds(7, 3) == [(0, 2), (2, 4), (4, 7)]
    assert overlap.bounds(3, 1) == [(0, 3)]


def first_word(completions: list[str]) -> list[float]:
    return [float(len(text.split(" ")[0])) for text in completions]


CASES = {
    "derived of a sum": lambda e: DerivedSource(
        RewardSum((RemoteScores(e), FunctionSource(first_word)), (1.0, 0.1)), label_threshold=4.0
    ),
    "constrained": lambda e: SOURCES.make(
        "constrained", sources=(RemoteScores(e),), thresholds=(9.0,)
    ),
    "ranked by reward": lambda e: RankedSource(
        ByReward(RemoteScores(e)), RANKINGS.make("win_rate")
    ),
    "self_play": lambda e: JudgeMatrix(RemoteJudge(e)),
    "two_player": lambda e: RemoteJudge(e),
}


@pytest.mark.parametrize("case", CASES)
def test_slices_change_neither_bits_nor_counts(
    server: Server, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Of two rounds, in slices and without asking ahead: reports, weights, requests."""
    ends, where = [], endpoint(server)
    for ahead in (True, False):
        judge = CASES[case](where)
        server.requests.clear()
        if case == "self_play":
            loop = loop_of(SelfPlay, source=judge, opponent="uniform")
        elif case == "two_player":
            loop = loop_of(TwoPlayer, NashMD(), source=None, comparator=judge)
        else:
            loop = loop_of(source=judge)
        with monkeypatch.context() as patch:
            if not ahead:
                patch.setattr(overlap, "overlaps", lambda *_: False)
            reports = [untimed(report) for report in loop.run(2)]
        ends.append((reports, loop.engine.weight, loop.state_dict(), len(server.requests)))
        drawn = sum(call[0] == "generate" for call in loop.engine.calls)
        assert (drawn >= 8) == ahead  # two rounds of four slices
    assert ends[0] == ends[1]
    assert ends[0][1] != 0.0
    if case != "ranked by reward":  # it counts what it compares
        assert ends[0][0][0]["judge/failed_calls"] > 0


class Slow(FakeEngine):
    """Takes 100 ms to sample a prompt, without the interpreter's lock."""

    def generate(self, prompts: Any, *args: Any, **options: Any) -> Any:
        time.sleep(0.1 * len(prompts))
        return super().generate(prompts, *args, **options)


def test_a_round_takes_the_longer_of_sampling_and_judging(server: Server) -> None:
    """Both take 0.4 s: 4 prompts of 100 ms, and 8 calls of 100 ms by two. In four slices judging
    ends a slice's worth after sampling, at 0.5 s and not 0.8."""
    server.script = lambda _, body: after(0.1, answer({"score": 1 + len(shown(body)[0]) % 9}))
    seconds = {}
    for slices in (4, 1):
        policy = JudgePolicy(slices=slices)
        source = RemoteScores(endpoint(server, concurrency=2))
        report = loop_of(engine=Slow(), source=source, judge=policy).run_round()
        assert report["judge/calls"] == 8
        seconds[slices] = report["time/round_s"]
    assert seconds[1] >= 0.8
    assert seconds[4] < 0.85 * seconds[1]


def test_a_judge_that_fails_fails_the_round_as_without(server: Server) -> None:
    server.script = lambda *_: status(500)
    source = RemoteScores(endpoint(server, retries=1))
    skips = loop_of(source=source, judge=JudgePolicy(on_failure="skip", retries=1, backoff_s=0.0))
    report = skips.run_round()
    assert (report["rounds_skipped"], report["judge/retries"], report["updates"]) == (1, 1, 0)
    different = len({(g.prompt, r.text) for g in skips.last_groups for r in g.responses})
    assert len(server.requests) == 4 * different  # asked ahead, again, and both anew
    with pytest.raises(RewardError, match=r"of its 8 responses but 0 have one, .* 8 failed"):
        loop_of(source=source).run_round()


class Interrupted(FakeEngine):
    """Ctrl-C while the third slice is sampled and the judge is busy."""

    at = 3
    server: Server

    def generate(self, *args: Any, **options: Any) -> Any:
        self.at -= 1
        if self.at == 0:
            until = time.monotonic() + 10
            while not self.server.requests and time.monotonic() < until:
                time.sleep(0.005)
            raise KeyboardInterrupt
        return super().generate(*args, **options)


def test_a_round_that_is_broken_off_gives_its_questions_up(server: Server) -> None:
    """One call at a time, 50 ms each: of four that were asked ahead the last is never sent."""
    server.script = lambda number, body: after(0.05, by_length(number, body))
    source = RemoteScores(endpoint(server, concurrency=1))
    engine = Interrupted()
    engine.server = server
    loop = loop_of(engine=engine, source=source)
    with pytest.raises(KeyboardInterrupt):
        loop.run_round()
    time.sleep(0.15)
    sent = len(server.requests)
    assert 1 <= sent <= 3
    time.sleep(0.15)
    assert len(server.requests) == sent
    server.script = by_length
    loop.run_round()
    whole = loop_of(source=RemoteScores(endpoint(server)))
    whole.run_round()
    assert loop.engine.weight == whole.engine.weight != 0.0


class Kept:
    """Remembers all rounds, or none."""

    def __init__(self, has: bool) -> None:
        self._has, self.verdict = has, None

    def has(self, number: int) -> bool:
        return self._has

    def __call__(self, number: int, groups: Any, ask: Any) -> steps.Verdict:
        self.verdict = self.verdict or ask()
        return self.verdict


def test_nobody_is_asked_ahead_of_a_verdict_on_file(server: Server) -> None:
    kept = Kept(has=False)
    loop_of(source=RemoteScores(endpoint(server)), remember=kept).run_round()
    kept._has = True
    server.requests.clear()
    report = loop_of(source=RemoteScores(endpoint(server)), remember=kept).run_round()
    assert server.requests == []
    assert report["updates"] == 1
    assert steps.may_be_on_file(lambda *_: None, 1)  # one that does not tell
    assert not steps.may_be_on_file(None, 1)


def test_an_allocation_divides_the_whole_round(server: Server) -> None:
    """Its samples depend on all prompts of the round, which is therefore sampled at once."""
    loop = loop_of(
        source=RemoteScores(endpoint(server)),
        allocation=ALLOCATIONS.make("until_k_correct", k=2, cap=4),
        accepted_above=4.0,
    )
    list(loop.run(2))
    assert [call[0] for call in loop.engine.calls].count("generate") == 2
    assert loop.engine.step_count > 0


def test_what_no_call_takes_is_forgotten(server: Server) -> None:
    """Asked ahead and given up; asked again, it is sent again."""
    server.script = lambda *_: after(0.2, answer({"score": 5}))
    source = RemoteScores(endpoint(server, concurrency=1))
    give_up = source.ahead(one_group("a", "b", "c"))
    give_up()
    server.script = lambda *_: answer({"score": 5})
    feedback = source(one_group("a", "b", "c"))
    assert feedback.rewards == [[5.0, 5.0, 5.0]]
    assert feedback.counts_by_name["calls"] == 3
