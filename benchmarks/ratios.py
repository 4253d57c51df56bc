"""The closing table: how many times as long as pyengine each baseline takes, in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One benchmark: median and quartiles in seconds, rates by unit."""

    job: str
    shape: str
    dtype: str
    provider: str
    median_s: float
    q1_s: float
    q3_s: float
    rates: dict[str, float]


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1.0:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def rate(result: Result) -> str:
    return ", ".join(f"{value:.3g} {unit}" for unit, value in result.rates.items())


def table(results: Sequence[Result], ours: str) -> list[str]:
    """Lines of text; above 1 pyengine is faster. The range sets quartiles against each other."""
    rows = [("job", "shape", "dtype", ours, "", "baseline", "its time", "", "ratio", "range")]
    mine = {(r.job, r.shape, r.dtype): r for r in results if r.provider == ours}
    for r in results:
        own = mine.get((r.job, r.shape, r.dtype))
        if own is None or r.provider == ours:
            continue
        ratio = f"{r.median_s / own.median_s:.2f}x"
        spread = f"{r.q1_s / own.q3_s:.2f}-{r.q3_s / own.q1_s:.2f}"
        theirs = (r.provider, seconds(r.median_s), rate(r))
        case = (r.job, r.shape, r.dtype, seconds(own.median_s), rate(own))
        rows.append((*case, *theirs, ratio, spread))
    if len(rows) == 1:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return [line.rstrip() for line in lines]
