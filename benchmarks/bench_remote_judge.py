"""Calls of a remote judge through the package openai, many at a time.

The endpoint is a process of this machine that answers after 100 ms, so that 200 calls at
concurrency 20 take a second at the least. `python benchmarks/bench_remote_judge.py` prints it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyengine.preferences import Endpoint, Group, RemoteJudge, Response
from pyengine.preferences.comparators.comparator import Duel

SERVER = Path(__file__).resolve().parents[1] / "tests" / "judge_server.py"
LATENCY_S = 0.1
CONCURRENCY = 20
SHAPES = {"smoke": [20], "default": [200], "full": [200]}
DTYPES = ("json",)
PROVIDERS = ("pyengine",)


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Its key, retries and cache are left out: nothing fails here."""
    command = [sys.executable, str(SERVER), "--latency-s", str(LATENCY_S)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        yield Endpoint("local", base_url=url, api_key_env=None, concurrency=CONCURRENCY)
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


def main() -> None:
    calls = 200
    groups, pairs = duels(calls)
    with endpoint() as where:
        where.ready()  # imports the package
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


if __name__ == "__main__":
    main()
