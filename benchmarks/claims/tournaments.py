"""Claims about rankings from comparisons: a judge whose probabilities are a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from claim import Claim, Figures
from numpy.typing import NDArray

from pyengine.preferences import Group, Response
from pyengine.preferences.comparators.comparator import Compared
from pyengine.preferences.rankings.borda import Borda
from pyengine.preferences.rankings.bradley_terry import BradleyTerry
from pyengine.preferences.rankings.copeland import Copeland
from pyengine.preferences.rankings.curatron import Curatron
from pyengine.preferences.rankings.knockout import Knockout
from pyengine.preferences.rankings.pairs_beam import PairsBeam
from pyengine.preferences.rankings.ranking import Ranked, rank

Array = NDArray[np.float64]


class TableJudge:
    """P(i is preferred to j) of group g is table[g, i, j]; NaN: no verdict."""

    def __init__(self, table: Array) -> None:
        self.table = table.tolist()

    def compare(self, groups: Sequence[Group], duels: Sequence[Any]) -> Compared:
        found = [self.table[g][i][j] for g, i, j in duels]
        return Compared([None if math.isnan(p) else p for p in found], [], {})


def played(ranking: Any, table: Array, seed: int = 0) -> Ranked:
    """One tournament for each of the tables (G, n, n), side by side."""
    groups = [Group([g], [Response([k]) for k in range(table.shape[1])]) for g in range(len(table))]
    return rank(groups, TableJudge(table), ranking, [seed + g for g in range(len(table))])


def antisymmetric(draw: np.random.Generator, prompts: int, n: int) -> Array:
    """(G, n, n) normal numbers of variance 1, that of (j, i) minus that of (i, j)."""
    upper = np.triu(draw.standard_normal((prompts, n, n)), 1)
    return upper - upper.swapaxes(1, 2)


def gaps(quality: Array) -> Array:
    """(G, n, n) quality of i minus that of j."""
    return quality[:, :, None] - quality[:, None, :]


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def best_quality(found: Ranked, quality: Array) -> float:
    """Mean quality of the responses that came out first."""
    return float(np.mean([quality[g, s.order[0]] for g, s in enumerate(found.standings)]))


def kendall(found: Ranked, quality: Array) -> float:
    """Mean Kendall's tau of the scores with the quality; equal scores count nothing."""
    scores = np.array([s.scores for s in found.standings], dtype=np.float64)
    agree = np.sign(gaps(scores)) * np.sign(gaps(quality))
    n = quality.shape[1]
    return float(agree.sum((1, 2)).mean() / (n * (n - 1)))


def knockout(seed: int) -> Figures:
    """Quality normal, comparisons see its difference with noise 0.25, scores it with noise 1."""
    draw = np.random.default_rng(seed)
    figures = {}
    for n, prompts in ((8, 200), (16, 80), (64, 24)):
        quality = draw.standard_normal((prompts, n))
        table = sigmoid(gaps(quality) + 0.25 * antisymmetric(draw, prompts, n))
        won = played(Knockout(), table, seed)
        pointwise = quality + draw.standard_normal((prompts, n))
        figures[f"n={n} comparisons"] = float(np.mean(won.comparisons))
        figures[f"n={n} rounds"] = float(max(won.rounds))
        figures[f"n={n} knockout"] = best_quality(won, quality)
        figures[f"n={n} Borda"] = best_quality(played(Borda(), table), quality)
        figures[f"n={n} pointwise"] = float(
            np.take_along_axis(quality, pointwise.argmax(1)[:, None], 1).mean()
        )
    every = [played(Knockout(), np.full((1, n, n), 0.75)).comparisons[0] for n in range(2, 65, 3)]
    figures["comparisons - (n - 1), n to 64"] = float(
        max(abs(asked - n + 1) for n, asked in zip(range(2, 65, 3), every, strict=True))
    )
    return figures


def knockout_holds(f: Figures) -> bool:
    return f["comparisons - (n - 1), n to 64"] == 0 and all(
        f[f"n={n} rounds"] == math.ceil(math.log2(n))
        and f[f"n={n} knockout"] >= 0.97 * f[f"n={n} Borda"]
        and f[f"n={n} knockout"] > f[f"n={n} pointwise"]
        for n in (8, 16, 64)
    )


def calibrated(
    draw: np.random.Generator, prompts: int, n: int, noise: float
) -> tuple[Array, Array]:
    """Normal qualities, and P(i is better than j) given their difference seen with noise."""
    quality = draw.standard_normal((prompts, n))
    seen = gaps(quality) + noise * antisymmetric(draw, prompts, n)
    # Prior of a difference: variance 2. The posterior's mean over its standard deviation.
    z = seen * math.sqrt(2 / (2 + noise**2)) / noise
    return quality, np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(z)


SORTS = {"greedy": PairsBeam(beam=1), "beam": PairsBeam(beam=8)}


def merge_sort(seed: int) -> Figures:
    """Comparisons over n log2 n, of a calibrated judge with noise 1."""
    draw = np.random.default_rng(seed)
    figures = {}
    for n, prompts in ((8, 20), (16, 10), (32, 5), (64, 3)):
        _, table = calibrated(draw, prompts, n, 1.0)
        for name, ranking in SORTS.items():
            asked = float(np.mean(played(ranking, table, seed).comparisons))
            figures[f"{name} n={n}"] = asked / (n * math.log2(n))
    return figures


def beam(seed: int) -> Figures:
    """Kendall's tau with the quality; differences of quality have a deviation of sqrt(2)."""
    draw = np.random.default_rng(seed)
    figures = {}
    for noise in (0.5, 2.0):
        quality, table = calibrated(draw, 50, 16, noise)
        for name, ranking in SORTS.items():
            figures[f"noise {noise:g} {name}"] = kendall(played(ranking, table, seed), quality)
    return figures


def copeland(seed: int) -> Figures:
    """16 responses, 120 pairs: normal strengths seen with noise 1/2, |P - 1/2| <= 0.1 a tie."""
    draw = np.random.default_rng(seed)
    prompts, n, margin = 30, 16, 0.1
    quality = draw.standard_normal((prompts, n))
    figures = {}
    for name, noise in (("noisy", 0.5), ("transitive", 0.0)):
        table = sigmoid(gaps(quality) + noise * antisymmetric(draw, prompts, n))
        points = ((table > 0.5 + margin) + 0.5 * (np.abs(table - 0.5) <= margin)).sum(2)
        options = {"duels": Copeland(margin), "4 at once": Copeland(margin, at_once=4)}
        for label, ranking in options.items():
            found = played(ranking, table)
            figures[f"{name} {label}"] = float(np.mean(found.comparisons))
            figures[f"{name} {label}, most"] = float(max(found.comparisons))
            right = [
                points[g, s.order[0]] == points[g].max() for g, s in enumerate(found.standings)
            ]
            figures[f"{name} {label}, winner"] = float(np.mean(right))
    exact = sigmoid(gaps(quality))
    chains = played(Copeland(transitive=True), exact)
    figures["no ties, by chains"] = float(np.mean(chains.comparisons))
    figures["no ties, winner"] = float(
        np.mean([quality[g].argmax() == s.order[0] for g, s in enumerate(chains.standings)])
    )
    return figures


def corrupted(seed: int) -> Figures:
    """20 responses, logits of strengths with noise 0.2; of a tenth of the pairs the wrong one is
    said to win with P = 0.99. Kendall's tau with the strengths; then with 3 of 10 pairs missing.
    """
    draw = np.random.default_rng(seed)
    prompts, n = 4, 20
    quality = draw.standard_normal((prompts, n))
    table = sigmoid(gaps(quality) + 0.2 * antisymmetric(draw, prompts, n))
    chance = np.triu(draw.random((prompts, n, n)), 1)
    chance += chance.swapaxes(1, 2)
    wrong = (chance < 0.1) & ~np.eye(n, dtype=bool)
    bad = np.where(wrong, np.where(gaps(quality) > 0, 0.01, 0.99), table)
    silent = np.where(chance > 0.7, np.nan, bad)
    figures = {}
    for label, given in (("corrupted", bad), ("and missing", silent)):
        for name, ranking in (
            ("CURATRON", Curatron()), ("Borda", Borda()), ("Bradley-Terry", BradleyTerry())
        ):  # fmt: skip
            figures[f"{label} {name}"] = kendall(played(ranking, given), quality)
    return figures


CLAIMS = [
    Claim(
        "a knockout needs n - 1 comparisons, chooses nearly as well as all pairs and better than "
        "noisy scores",
        "arXiv:2501.13007",
        "n - 1 comparisons for n to 64, ceil(log2 n) rounds; quality of the best >= 97 % of "
        "Borda's and above that of scores with 4 times the noise, n = 8, 16, 64",
        knockout,
        knockout_holds,
    ),
    Claim(
        "PairS ranks n responses in about n log n comparisons",
        "arXiv:2403.16950",
        "comparisons / (n log2 n) at most 1 for the greedy sort and 1.5 with a beam of 8, n = 8 to "
        "64",
        merge_sort,
        lambda f: all(
            value <= (1 if name.startswith("greedy") else 1.5) for name, value in f.items()
        ),
    ),
    Claim(
        "PairS's beam ranks better than greedy merging where the judge is unsure",
        "arXiv:2403.16950",
        "Kendall's tau with the quality of 16 responses at least 0.02 above the greedy sort's, "
        "under noise of 1.4 times the differences",
        beam,
        lambda f: f["noise 2 beam"] >= f["noise 2 greedy"] + 0.02,
        note="a pair's error is its own here: over 300 prompts the difference at noise 2 is -0.003 "
        "+- 0.006, and summed instead of mean log-probs are worse",
    ),
    Claim(
        "Copeland's winner with ties takes far fewer duels than a round robin",
        "arXiv:2310.00750",
        "the winner is always one of all pairs, in at most half of the 120 duels on average",
        copeland,
        lambda f: (
            all(value == 1 for name, value in f.items() if "winner" in name)
            and max(f["noisy duels"], f["transitive duels"]) <= 60
        ),
    ),
    Claim(
        "CURATRON's ranking withstands corrupted comparisons, also where others are missing",
        "arXiv:2403.02745",
        "Kendall's tau above Borda's and Bradley-Terry's with 10 % corrupted, and with 30 % "
        "missing beside them",
        corrupted,
        lambda f: all(
            f[f"{label} CURATRON"] > max(f[f"{label} Borda"], f[f"{label} Bradley-Terry"])
            for label in ("corrupted", "and missing")
        ),
    ),
]
