"""Timing one benchmark: enough rounds for its quartiles, and rates from the work it does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from machine import cpu_name
from ratios import Result

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SECONDS_A_BENCHMARK = 2.0
RESULTS = pytest.StashKey[list[Result]]()


def timing_is_off(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_disable") or config.getoption("benchmark_skip"))


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
        case: dict[str, Any] = {"job": job, "shape": shape, "dtype": dtype, "provider": provider}
        self.describe(**case, device=where)
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
        self.keep(stats.data, rates, **case)

    def describe(
        self,
        *,
        job: str,
        shape: object,
        dtype: str,
        provider: str,
        device: torch.device | None = None,
    ) -> None:
        """What pytest-benchmark's own table and JSON say of this benchmark."""
        self.benchmark.group = f"{job} {shape} {dtype}"
        on_gpu = device is not None and device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else cpu_name()
        where = {"device": "cuda" if on_gpu else "cpu", "device_name": name}
        self.benchmark.extra_info.update(self.info, **where, provider=provider)

    def keep(
        self,
        seconds: Sequence[float],
        rates: dict[str, float],
        *,
        job: str,
        shape: object,
        dtype: str,
        provider: str,
    ) -> None:
        """A line of the closing table: its quartiles and rates by unit."""
        self.benchmark.extra_info.update(rates)
        q1, median, q3 = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
        self.config.stash[RESULTS].append(
            Result(job, str(shape), dtype, provider, median, q1, q3, rates)
        )
