"""The figure of docs/claims.md."""

from __future__ import annotations

import math
from pathlib import Path

import iteration
import tradeoff
from matplotlib import pyplot as plt

from pyengine.objectives import DPO, IPO


def draw(path: Path) -> None:
    """Reward gained against sqrt(KL), beside the margins of DPO and IPO over steps."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "claims", "font.size": 9}
    with plt.rc_context(style):
        drawing, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
        left.plot([0, 2.4], [0, 2.4 * math.sqrt(2)], color="0.7", label="sqrt(2 KL)")
        curves = {
            "optimum (DRO)": (tradeoff.tilted(), "o"),
            "online DPO": (tradeoff.online("dpo", 0), "-"),
            "RLOO": (tradeoff.online("rloo", 0), "-"),
        }
        for name, (curve, marker) in curves.items():
            left.plot([math.sqrt(max(kl, 0)) for kl, _ in curve], [g for _, g in curve], marker,
                      label=name)  # fmt: skip
        left.set(xlabel="sqrt(KL)", ylabel="reward gained", title="Reward and KL")
        marks = [round(10 ** (i / 8)) for i in range(5, 33)]
        right.plot(marks, iteration.margins(DPO(beta=0.1), 50.0, marks), label="DPO")
        ipo = iteration.margins(IPO(beta=0.1, length_normalize=False), 0.1, marks)
        right.plot(marks, ipo, label="IPO")
        right.set(xscale="log", xlabel="steps", ylabel="margin of best over worst",
                  title="Deterministic preferences")  # fmt: skip
        for axes in (left, right):
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        drawing.savefig(path, metadata={"Date": None})
        plt.close(drawing)
