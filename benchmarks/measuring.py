"""Timing one benchmark: enough rounds for its quartiles, and rates from the work it does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ratios import Result

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SECONDS_A_BENCHMARK = 2.0
RESULTS = pytest.StashKey[list[Result]]()


def timing_is_off(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_disable") or config.getoption("benchmark_skip"))


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


class Measure:
    """Times a function with pytest-benchmark and keeps what the closing table needs."""

    def __init__(self, benchmark: Any, config: pytest.Config, info: dict[str, Any]) -> None:
        self.benchmark = benchmark
        self.config = config
        self.info = info

    def __call__(
        self,
        run: Callable[[], Any],
        *,
        job: str,
        shape: object,
        dtype: str,
        provider: str,
        device: torch.device | None = None,
        flops: float = 0.0,
        bytes: float = 0.0,
        tokens: float = 0.0,
        rounds: int | None = None,
    ) -> None:
        """`flops`, `bytes` and `tokens` are of one call; `run` has been checked before."""
        bench, where = self.benchmark, device or torch.device("cpu")
        timed = run if where.type == "cpu" else lambda: (run(), torch.cuda.synchronize())
        bench.group = f"{job} {shape} {dtype}"
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name()
        bench.extra_info.update(self.info, device=where.type, device_name=name, provider=provider)
        if timing_is_off(self.config):
            bench(timed)
            return
        start = time.perf_counter()
        timed()
        once = time.perf_counter() - start
        iterations = max(1, math.ceil(0.02 / once))
        rounds = rounds or min(25, max(3, int(SECONDS_A_BENCHMARK / (once * iterations))))
        bench.pedantic(timed, rounds=rounds, iterations=iterations)
        stats = bench.stats.stats
        rates = {"GFLOP/s": flops / 1e9, "GB/s": bytes / 1e9, "tok/s": tokens}
        rates = {unit: amount / stats.median for unit, amount in rates.items() if amount}
        bench.extra_info.update(rates)
        self.config.stash[RESULTS].append(
            Result(job, str(shape), dtype, provider, stats.median, stats.q1, stats.q3, rates)
        )
