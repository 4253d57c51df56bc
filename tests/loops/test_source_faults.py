"""What every registered source does when what it asks hangs, or a disk that it writes to is full:
what failed is counted and not learned from, and the run goes on to the same bits."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine
from judge_server import Server, after, answer
from loops.loop_cases import make, number
from preferences.remote.scripted import endpoint_of, shown
from scripted_judge import Characters, OneScore

from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.loops import JudgePolicy, Online
from pyengine.loops.deadline import within
from pyengine.objectives import DPO
from pyengine.preferences.comparators.available import COMPARATORS
from pyengine.preferences.rankings.available import RANKINGS
from pyengine.preferences.remote import reply_cache
from pyengine.preferences.sources.available import SOURCES
from pyengine.preferences.sources.verifiers import reasoning_gym_task

# The first is right; the second may hang where it is said; of others nothing can.
GOOD, LONG, FORMS = "right", "a" * 40 + "b", "^(right|(a+)+)$"
PROGRAMS = {GOOD: "def f():\n    return 1", LONG: "def f():\n    while True:\n        pass"}
NOTHING_TO_HANG = {"by_origin", "choice", "exact_match", "numeric", "self_consistency"}
# They ask by calls that are tried here: of sources, and of hidden states as refitted_head does.
ASK_AS_OTHERS = {"reward_probe", "segment_rewards", "token_guidance"}


class Hang:
    """Waits while it is on, until the test ends."""

    def __init__(self) -> None:
        self.on, self._released = False, threading.Event()

    def __call__(self) -> None:
        if self.on:
            self._released.wait(60)

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.release()


class Speaker(FakeEngine):
    """Of each prompt's two responses the first is right, and the second what `second` says."""

    second = "wrong"
    texts = types.MappingProxyType({})

    def _sample(self, weight: float, params: Any, request_id: int, k: int) -> Any:
        response = super()._sample(weight, params, request_id, k)
        text = self.second if k % 2 else GOOD
        response.text = self.texts.get(text, text)
        return response


@dataclass
class Model:
    """A model, or a reward model, whose answers depend on what it reads; it may hang."""

    hang: Hang
    salt: int = 0
    tokenizer: Any = None
    max_positions: int = 10_000
    outputs: int = 1
    reading: str = "reward"

    def __post_init__(self) -> None:
        self.tokenizer = Characters()

    def score(self, groups: Any) -> Any:
        self.hang()
        return [
            [OneScore(-1.0 - number(self.salt, g.prompt_ids, r.token_ids)) for r in g.responses]
            for g in groups
        ]

    def sample(self, prompts: Any, *, n: int, **_: Any) -> Any:
        self.hang()
        raise AssertionError

    def rewards(self, groups: Any) -> Any:
        self.hang()
        return [[torch.tensor([number(r.token_ids)]) for r in g.responses] for g in groups]

    def hidden_states(self, groups: Any, pool: str) -> Any:
        return self.states(groups)

    @property
    def head_weight(self) -> torch.Tensor:
        return torch.ones(1, 2)

    def states(self, groups: Any) -> Any:
        self.hang()
        return [[torch.tensor([number(r.token_ids), 1.0]) for r in g.responses] for g in groups]


def lengths(hang: Hang) -> Callable[..., list[float]]:
    def f(completion_ids: list[list[int]]) -> list[float]:
        hang()
        return [float(sum(ids) % 13) + 0.1 * k for k, ids in enumerate(completion_ids)]

    return f


def function(hang: Hang) -> Any:
    return SOURCES.make("function", function=lengths(hang), timeout_s=0.2)


@dataclass
class Case:
    """A source, what its rows and texts are, and what has failed when it hangs.

    lost  "response": the second of each prompt. "round": all, by the source's own deadline, so that
          the round is skipped; "policy": by the policy's, which only they are given. "nothing": a
          program that hangs is wrong, which is no failure of what judges it
    """

    source: Callable[[Hang, Any], Any]
    lost: str = "round"
    columns: Any = None
    texts: Any = None


def pairwise(hang: Hang) -> Any:
    return COMPARATORS.make("pairwise_judge", model=Model(hang))


def remote_judge(server: Server) -> Any:
    judge = endpoint_of(server, api_key_env=None, timeout_s=0.3, retries=0)
    return COMPARATORS.make("remote_judge", endpoint=judge)


def remote_scores(server: Server, **fields: Any) -> Any:
    endpoint = endpoint_of(server, api_key_env=None, timeout_s=0.3, retries=0, **fields)
    return SOURCES.make("remote_scores", endpoint=endpoint)


CASES = {
    "constrained": Case(
        lambda h, _: SOURCES.make("constrained", sources=(function(h),), thresholds=(1.0,))
    ),
    "derived": Case(lambda h, _: SOURCES.make("derived", source=function(h), label_threshold=3.0)),
    "ensemble": Case(lambda h, _: SOURCES.make("ensemble", sources=(function(h), function(h)))),
    "function": Case(lambda h, _: function(h)),
    "implicit_reward": Case(
        lambda h, _: SOURCES.make(
            "implicit_reward", model=Model(h), reference=Model(Hang(), salt=1)
        ),
        "policy",
    ),
    "json_schema": Case(
        lambda h, _: SOURCES.make("json_schema", timeout_s=0.3),
        "response",
        {"schema": {"pattern": FORMS}},
        {GOOD: f'"{GOOD}"', LONG: f'"{LONG}"'},
    ),
    "judge_matrix": Case(
        lambda h, _: SOURCES.make("judge_matrix", comparator=pairwise(h)), "policy"
    ),
    "judge_matrix of an endpoint": Case(
        lambda _, s: SOURCES.make("judge_matrix", comparator=remote_judge(s))
    ),
    "knowledge": Case(
        lambda h, _: SOURCES.make("knowledge", verifier=SOURCES.make("regex", timeout_s=0.3)),
        "response",
        {"pattern": FORMS},
    ),
    "log_odds": Case(
        lambda h, _: SOURCES.make(
            "log_odds", source=SOURCES.make("judge_matrix", comparator=pairwise(h))
        ),
        "policy",
    ),
    "mc_dropout": Case(lambda h, _: SOURCES.make("mc_dropout", model=Model(h)), "policy"),
    "ranked": Case(
        lambda h, _: SOURCES.make(
            "ranked", comparator=pairwise(h), ranking=RANKINGS.make("win_rate")
        ),
        "policy",
    ),
    "reasoning_gym": Case(
        lambda h, _: SOURCES.make(
            "reasoning_gym", scorer="task", after=None, before=None, timeout_s=0.2
        ),
        columns={"answer": GOOD, "task": "t", "entry": {}},
    ),
    "refitted_head": Case(
        lambda h, _: SOURCES.make(
            "refitted_head", comparator=pairwise(Hang()), model=Model(h), labels=1
        ),
        "policy",
    ),
    "regex": Case(
        lambda h, _: SOURCES.make("regex", timeout_s=0.3), "response", {"pattern": FORMS}
    ),
    "remote_scores": Case(lambda _, s: remote_scores(s), "response"),
    "reward_model": Case(lambda h, _: SOURCES.make("reward_model", model=Model(h)), "policy"),
    "reward_sum": Case(lambda h, _: SOURCES.make("reward_sum", sources=(function(h),))),
    "rewards_to_go": Case(lambda h, _: SOURCES.make("rewards_to_go", source=function(h))),
    "score_tokens": Case(lambda h, _: SOURCES.make("score_tokens", model=Model(h)), "policy"),
    "tilted_target": Case(
        lambda h, _: SOURCES.make("tilted_target", source=function(h), reference=Model(Hang()))
    ),
    "unit_tests": Case(
        lambda h, _: SOURCES.make("unit_tests", wall_s=0.3),
        "nothing",
        {"tests": "assert f() == 1"},
        PROGRAMS,
    ),
    "worst_group": Case(
        lambda h, _: SOURCES.make("worst_group", sources=(function(h), function(h)))
    ),
    "yes_no": Case(lambda h, _: SOURCES.make("yes_no", model=Model(h)), "policy"),
}


def test_every_source_is_tried_or_has_nothing_to_hang() -> None:
    tried = {name.split()[0] for name in CASES}
    assert tried | NOTHING_TO_HANG | ASK_AS_OTHERS == set(SOURCES.names())


@pytest.fixture
def server(hang: Hang, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Hangs on questions that show the long response; the right one is better."""

    def script(_: int, body: dict) -> Any:
        texts = shown(body)
        if hang.on and LONG in texts:
            return after(60, answer({"score": 1}))
        if len(texts) == 1:
            return answer({"score": 9 if texts[0] == GOOD else 2})
        return answer({"verdict": "A" if texts[0] == GOOD else "B"})

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(script) as server:
        yield server


def scorer_of(hang: Hang) -> Any:
    def score_answer(text: str, entry: Any) -> float:
        hang()
        return float(text == GOOD)

    return types.SimpleNamespace(score_answer=score_answer)


def loop_of(case: Case, source: Any, engine: Any = None) -> Any:
    engine = engine or Speaker()
    engine.texts = case.texts or {}
    columns = {name: [value] for name, value in (case.columns or {}).items()}
    policy = JudgePolicy(on_failure="skip", timeout_s=0.4 if case.lost == "policy" else None)
    settings = {"sampling": SamplingParams(n=2, max_tokens=6, seed=2), "min_valid_fraction": 0.5}
    return make(
        Online, DPO(), engine, prompts=["p"], prompts_per_round=1, source=source, judge=policy,
        columns=columns, **settings,
    )  # fmt: skip


def resumed(case: Case, loop: Any, source: Any) -> Any:
    """Another loop, at the place where this one is."""
    engine = Speaker()
    engine.weight, engine.step_count = loop.engine.weight, loop.engine.step_count
    engine.second = loop.engine.second
    again = loop_of(case, source, engine)
    again.load_state_dict(loop.state_dict())
    return again


@pytest.mark.parametrize("name", CASES)
def test_what_hangs_is_counted_and_left_out(
    name: str, hang: Hang, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 1; round 2 learns, the same bits in a run that was broken off between them."""
    monkeypatch.setattr(reasoning_gym_task, "_scorer", lambda _: scorer_of(hang))
    monkeypatch.setattr(reasoning_gym_task, "gym", lambda: None)
    case = CASES[name]
    source = case.source(hang, server)
    loop = loop_of(case, source)
    hang.on, loop.engine.second = True, LONG
    start = time.monotonic()
    report = loop.run_round()
    assert time.monotonic() - start < 10
    if case.lost == "nothing":
        assert (report["judge/timed_out"], report["reward/value"]) == (1, 2)
    else:  # of one response that is judged there is no pair
        assert (loop.engine.updates, loop.engine.weight) == ([], 0.0)
        assert report.get("reward/error", 0) == (case.lost == "response")
        assert report["rounds_skipped"] == (case.lost != "response")
    hang.on, loop.engine.second = False, "wrong"
    again = resumed(case, loop, case.source(hang, server))
    for each in (loop, again):
        report = each.run_round()
        assert (report["round"], report["reward/value"], report["updates"]) == (2, 2, 1)
    assert again.engine.weight == loop.engine.weight != 0.0


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_cache_on_a_full_disk_loses_no_answer_and_changes_no_bit(
    server: Server, hang: Hang, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["remote_scores"]
    source = remote_scores(server, cache=str(tmp_path))
    loop = loop_of(case, source)
    with monkeypatch.context() as patch:
        patch.setattr(reply_cache.os, "write", full)
        report = loop.run_round()
    assert (report["judge/cache_failures"], report["reward/value"], report["updates"]) == (2, 2, 1)
    whole = loop_of(case, remote_scores(server))
    whole.run_round()
    again = resumed(case, loop, remote_scores(server, cache=str(tmp_path)))
    assert [again.run_round()["judge/cache_failures"], whole.run_round()["round"]] == [0, 2]
    assert again.engine.weight == whole.engine.weight != 0.0


def test_a_sandbox_on_a_full_disk_is_counted_and_left_out(
    server: Server, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["unit_tests"]
    loop = loop_of(case, case.source(hang, server))
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", full)
        report = loop.run_round()
    assert (report["rounds_skipped"], report["updates"], loop.engine.weight) == (1, 0, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", full)
        groups = loop.last_groups
        feedback = loop.source(groups)
    assert feedback.status == [["error", "error"]]
    assert feedback.counts_by_name["sandbox_failed"] == 2
    assert feedback.errors[0].endswith("could not be run: [Errno 28] No space left on device")


def test_a_call_within_its_seconds() -> None:
    def late() -> None:
        raise TimeoutError("of its own")

    threads: list[str] = []
    assert within(None, lambda: threading.current_thread().name) == "MainThread"
    assert within(5.0, lambda: threads.append(threading.current_thread().name)) is None
    assert threads == ["pyengine-judge"]
    with pytest.raises(TimeoutError, match="of its own"):
        within(5.0, late)
    with pytest.raises(KeyError):
        within(5.0, lambda: {}["x"])
    released = threading.Event()
    with pytest.raises(TimeoutError, match=r"no verdict within 0\.05 s"):
        within(0.05, lambda: released.wait(30))
    released.set()
