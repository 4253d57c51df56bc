"""Claims about how many samples each prompt is worth."""

from __future__ import annotations

import torch
from claim import Claim, Figures
from fitting import F64
from torch import Tensor

from pyengine.preferences.allocations.allocation import Allocation, PromptStats
from pyengine.preferences.allocations.difficulty import Difficulty
from pyengine.preferences.allocations.gvm import Gvm
from pyengine.preferences.allocations.uniform import Uniform
from pyengine.preferences.allocations.until_k_correct import UntilKCorrect

PROMPTS = 200


def pass_rates(g: torch.Generator) -> Tensor:
    """(PROMPTS,) of a Beta(0.6, 1.2): many hard prompts, some easy ones."""
    concentration = torch.tensor([0.6, 1.2], dtype=F64).expand(PROMPTS, 2)
    return torch._sample_dirichlet(concentration, g)[:, 0]


def gradient_variance(seed: int) -> Figures:
    """sum of G^2 / (p n) with n from pass rates known exactly, and from 8 samples a prompt.

    Prompts that an allocation gives nothing are in neither sum; their share is said.
    """
    g = torch.Generator().manual_seed(seed)
    p = pass_rates(g)
    norms = torch.randn(PROMPTS, generator=g, dtype=F64).exp()
    figures = {}
    for title, tried in (("known", 100_000), ("of 8", 8)):
        exact = tried > 8
        correct = (p * tried).round() if exact else torch.binomial(torch.full_like(p, 8), p, g)
        stats = [
            PromptStats(tried, int(c), norm)
            for c, norm in zip(correct.tolist(), norms.tolist(), strict=True)
        ]
        counts = {
            rule.name: torch.tensor(rule(stats, PROMPTS * 64), dtype=F64)
            for rule in (Uniform(), Gvm())
        }
        both = counts["gvm"] > 0
        # What uniform spends on prompts that GVM leaves out, it spends on the others here.
        counts["uniform"] *= PROMPTS / both.sum()
        one, other = (
            (norms.square() / (p * counts[name]))[both].sum() for name in ("uniform", "gvm")
        )
        figures[f"uniform / GVM, {title}"] = (one / other).item()
        figures[f"left out, {title}"] = 1 - both.double().mean().item()
    return figures


def sampled(
    rule: Allocation, p: Tensor, g: torch.Generator, budget: int, start: int = 0
) -> tuple[Tensor, Tensor]:
    """(tried, correct) of each prompt, asking the rule again and again until it gives nothing more
    or the budget is spent."""
    tried = torch.full_like(p, start)
    correct = torch.binomial(tried, p, g)
    while (left := budget - int(tried.sum())) > 0:
        pairs = zip(tried.tolist(), correct.tolist(), strict=True)
        more = torch.tensor(rule([PromptStats(int(n), int(c)) for n, c in pairs], left), dtype=F64)
        if not more.sum():
            break
        tried = tried + more
        correct = correct + torch.binomial(more, p, g)
    return tried, correct


def hardest_quartile(seed: int) -> Figures:
    """Of the correct samples those of the hardest quarter of prompts, and prompts with one.

    Sampling goes on until each prompt has 4 correct ones or was tried 400 times; uniform sampling
    and that by difficulty (4 for the hardest, known from 8 samples) get as many samples.
    """
    g = torch.Generator().manual_seed(seed)
    p = pass_rates(g)
    hard = p <= p.quantile(0.25)
    tried, until = sampled(UntilKCorrect(k=4, cap=400, per_missing=2), p, g, 10**9)
    budget = int(tried.sum())
    found = {
        "uniform": sampled(Uniform(), p, g, budget)[1],
        "until 4 correct": until,
        "by difficulty": sampled(Difficulty(k=4, cap=400, per_missing=2), p, g, budget, 8)[1],
    }
    figures = {name: (c[hard].sum() / c.sum()).item() for name, c in found.items()}
    covered = {f"{name} covers": (c > 0).double().mean().item() for name, c in found.items()}
    return figures | covered | {"samples a prompt": budget / PROMPTS}


CLAIMS = [
    Claim(
        "GVM: samples where gradients are large and correct samples rare lower the variance",
        "arXiv:2505.02391",
        "sum of G^2 / (p n) of uniform samples at least 1.5 times that of GVM's, pass rates "
        "estimated from 8 samples, over prompts of which one passed",
        gradient_variance,
        lambda f: f["uniform / GVM, of 8"] >= 1.5,
        note="it gives up prompts that never passed; with pass rates known exactly alpha keeps it "
        "from those that hardly ever pass, and their share of the sum makes it the worse one; on a "
        "language model RAFT is not faster with it, see docs/arithmetic.md",
    ),
    Claim(
        "DART: sampling until each prompt has k correct samples teaches hard prompts",
        "arXiv:2407.13690",
        "share of correct samples that are of the hardest quarter at least 5 times that of "
        "uniform sampling, with the same number of samples",
        hardest_quartile,
        lambda f: f["until 4 correct"] >= 5 * f["uniform"],
    ),
]
