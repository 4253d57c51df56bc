"""Whole-model jobs take turns: ours, a peer, the next peer, ours again; noise then hits all alike.

pytest-benchmark times one provider a test. The first test of a case runs all its providers in turn
and keeps their seconds; every test then plays its own seconds back on the clock that
pytest-benchmark reads.
"""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from measuring import Measure, timing_is_off


class Clock:
    """time.perf_counter, and ahead of it by the seconds that were played back."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now(self) -> float:
        return time.perf_counter() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


CLOCK = Clock()


@dataclass(frozen=True)
class Lane:
    """What one provider is timed doing.

    tokens        of one run
    first         the beginning of the same work, of generation up to its first new token
    timed_first   instead of `first`: run() returns the seconds that its own beginning took
    warm_up       instead of a whole run
    decode_tokens of a run without `first`, or what else its rest makes
    rest          what a run does after `first`, and the unit of its rate
    figures       of the job, shown beside its rates
    """

    run: Callable[[], Any]
    tokens: int
    first: Callable[[], Any] | None = None
    timed_first: bool = False
    warm_up: Callable[[], Any] | None = None
    decode_tokens: int = 0
    rest: tuple[str, str] = ("decode", "tok/s")
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Laps:
    """Seconds of each round; decode_s is empty for a lane without a `first`."""

    tokens: int
    decode_tokens: int
    rest: tuple[str, str] = ("decode", "tok/s")
    figures: Mapping[str, float] = field(default_factory=dict)
    run_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)


Make = Callable[[str, ExitStack], Lane]  # (provider, what to close after) -> its checked lane
Outcome = Laps | BaseException


@dataclass
class Heat:
    """The case whose providers have run, kept for the tests that report them."""

    case: object = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def take_turns(make: Make, providers: Iterable[str], rounds: int) -> dict[str, Outcome]:
    """Checks and warms every provider, then times each once a round.

    A provider that is missing or fails leaves its exception for its own test to raise.
    """
    outcomes: dict[str, Outcome] = {}
    lanes: dict[str, Lane] = {}
    with ExitStack() as stack:
        for provider in providers:
            try:
                lane = make(provider, stack)
                for warm_up in (lane.warm_up or lane.run, lane.first):
                    if warm_up is not None:
                        warm_up()
            except (Exception, pytest.skip.Exception) as error:
                # As text: the traceback's frames would keep the models in memory.
                if isinstance(error, Exception):
                    error.add_note("".join(traceback.format_tb(error.__traceback__)))
                outcomes[provider] = error.with_traceback(None)
                continue
            lanes[provider] = lane
            outcomes[provider] = Laps(lane.tokens, lane.decode_tokens, lane.rest, lane.figures)
        gc.collect()
        for _ in range(rounds):
            for provider, lane in lanes.items():
                laps = outcomes[provider]
                assert isinstance(laps, Laps)
                run_s, first_s = seconds_of(lane.run)
                laps.run_s.append(run_s)
                if lane.first is not None:
                    first_s, _ = seconds_of(lane.first)
                if lane.first is not None or lane.timed_first:
                    laps.decode_s.append(run_s - first_s)
    return outcomes


class Race:
    """race(make, ...): times this test's provider in turn with the other selected ones."""

    def __init__(self, request: pytest.FixtureRequest, measure: Measure, heat: Heat) -> None:
        self.request = request
        self.measure = measure
        self.heat = heat

    def __call__(self, make: Make, *, job: str, shape: object, dtype: str, provider: str) -> None:
        case: dict[str, Any] = {"job": job, "shape": shape, "dtype": dtype, "provider": provider}
        self.measure.describe(**case)
        bench, config = self.measure.benchmark, self.request.config
        if timing_is_off(config):
            with ExitStack() as stack:
                bench(make(provider, stack).run)
            return
        if self.heat.case != (job, shape, dtype):
            rounds = config.getoption("benchmark_min_rounds")
            self.heat.outcomes = take_turns(make, self._providers(), rounds)
            self.heat.case = (job, shape, dtype)
        laps = self.heat.outcomes[provider]
        if isinstance(laps, BaseException):
            raise laps
        recorded = iter(laps.run_s)
        bench.pedantic(lambda: CLOCK.advance(next(recorded)), rounds=len(laps.run_s), iterations=1)
        rates = {"tok/s": laps.tokens / statistics.median(laps.run_s), **laps.figures}
        self.measure.keep(laps.run_s, rates, **case)
        if laps.decode_s:
            median_s, (name, unit) = statistics.median(laps.decode_s), laps.rest
            bench.extra_info.update({f"{name} s": laps.decode_s})
            rates = {f"{name} {unit}": laps.decode_tokens / median_s if median_s > 0 else 0.0}
            self.measure.keep(laps.decode_s, rates, **case | {"job": f"{job}: {name}"})

    def _providers(self) -> list[str]:
        """Those that this session was asked for, of this test's case."""
        me = self.request.node
        same = ("shape", "dtype")
        return [
            item.callspec.params["provider"]
            for item in self.request.session.items
            if isinstance(item, pytest.Function)
            and item.function is me.function
            and all(item.callspec.params[key] == me.callspec.params[key] for key in same)
            and item.get_closest_marker("skip") is None
        ]
