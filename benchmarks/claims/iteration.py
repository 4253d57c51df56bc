"""Claims about where training goes: tables of a few arms in float64, exact expectations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from claim import Claim, Figures
from fitting import F64, fit
from torch import Tensor

from pyengine.objectives import DPO, IPO, pairwise_loss, token_loss
from pyengine.objectives.core.examples import Examples
from pyengine.objectives.core.terms import kernel_terms
from pyengine.ops import PairOperand
from pyengine.ops import pairwise_loss as fused_loss


def margins(objective: DPO | IPO, rate: float, marks: Sequence[int]) -> list[float]:
    """Of the best and the worst of three arms, all comparisons won by the better one.

    After the steps of gradient descent that `marks` says; slopes are those that updates of the
    engine take, from the fused kernel.
    """
    c, r = torch.tensor([[0, 0, 1], [1, 2, 2]])
    reference = torch.full((3,), 1 / 3, dtype=F64).log()
    terms = kernel_terms(objective.terms(Examples({}, {}, objective.inputs)), objective.operands)
    share = torch.full((3,), 1 / 3, dtype=F64)
    logits, found = torch.zeros(3, dtype=F64), []
    for step in range(1, marks[-1] + 1):
        logps = torch.log_softmax(logits, 0)
        operands = [PairOperand(logps, reference, c), PairOperand(logps, reference, r)]
        slopes = fused_loss(operands, terms, share).dsums
        logits = logits - rate * (slopes - logps.exp() * slopes.sum())
        if step in marks:
            found.append((logits[0] - logits[2]).item())
    return found


def deterministic_preferences(seed: int) -> Figures:
    """See `margins`."""
    dpo = margins(DPO(beta=0.1), 50.0, [300, 30_000])
    ipo = margins(IPO(beta=0.1, length_normalize=False), 0.1, [1000, 5000])
    return {"DPO h(300)": dpo[0], "h(30k)": dpo[1], "IPO h(1k)": ipo[0], "h(5k)": ipo[1]}


def nash_equilibrium(seed: int) -> Figures:
    """Biased rock, paper, scissors; tau 0.1, eta 0.1; how far the last 1,000 policies move."""
    P = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]], dtype=F64)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log()
    eta = 0.1

    def moves(tau: float) -> float:
        logps, last = torch.tensor([0.6, 0.2, 0.2], dtype=F64).log(), []
        for step in range(4000):
            mixture = torch.softmax((1 - eta * tau) * logps + eta * tau * reference, 0)
            wins = P @ mixture - 0.5
            # Each arm's slope with respect to its own log-prob, from the objective.
            leaf = logps.clone().requires_grad_()
            loss = token_loss(
                "nash_md", leaf[:, None], None, reference[:, None] if tau else None, wins,
                torch.ones(3, 1), beta=tau,
            )  # fmt: skip
            (slope,) = torch.autograd.grad(loss * 3, leaf)
            logps = torch.log_softmax(logps - eta * slope, 0)
            if step >= 3000:
                last.append(logps.exp())
        over_time = torch.stack(last)
        return (over_time.max(0).values - over_time.min(0).values).max().item()

    return {"Nash-MD moves": moves(0.1), "without regularisation": moves(0.0)}


def momentum(seed: int) -> Figures:
    """Exact DPO steps from iterate to iterate, logits extrapolated by a; until 1e-3 is left."""
    rewards = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.0], dtype=F64)
    i, j = torch.triu_indices(5, 5, 1)
    target = torch.sigmoid(rewards[i] - rewards[j])

    def iterations(a: float) -> int:
        played = solved = torch.zeros(5, dtype=F64)
        for step in range(1, 60):
            current = torch.log_softmax(played, 0)

            def loss(logits: Tensor, current: Tensor = current) -> Tensor:
                logps = torch.log_softmax(logits, 0)
                return pairwise_loss(
                    "soft_dpo", logps[i], logps[j], current[i], current[j],
                    target=target, beta=0.5,
                ).mean()  # fmt: skip

            before, solved = solved, fit(loss, played, 60, 1e-12)
            solved = solved - solved.mean()
            played = solved + a * (solved - before)
            if 1 - (torch.softmax(played, 0) @ rewards).item() < 1e-3:
                return step
        return 60

    return {f"a={a}": float(iterations(a)) for a in (0.0, 0.3, 0.5, 0.7)}


def chosen_log_prob(seed: int) -> Figures:
    """Two near duplicates and a third arm: how log pi moves until the margin h is 0.1.

    Features (1, 0), (0.9, 0.2), (0.3, 1); logits are linear in them; the pair is the duplicates.
    """
    features = torch.tensor([[1.0, 0.0], [0.9, 0.2], [0.3, 1.0]], dtype=F64)
    reference = torch.full((3,), 1 / 3, dtype=F64).log()

    def change(name: str, rate: float, **options: float) -> list[float]:
        weights = torch.zeros(2, dtype=F64, requires_grad=True)
        moved = torch.zeros(3, dtype=F64)
        while moved[0] - moved[1] < 0.1:
            logps = torch.log_softmax(features @ weights, 0)
            loss = pairwise_loss(
                name, logps[:1], logps[1:2], reference[:1], reference[1:2], **options
            ).mean()
            (slope,) = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                weights -= rate * slope
            moved = (torch.log_softmax(features @ weights, 0) - reference).detach()
        return moved.tolist()

    sppo, dpo = change("sppo", 0.01, beta=0.5), change("dpo", 0.1, beta=0.1)
    return {
        "SPPO chosen": sppo[0],
        "rejected": sppo[1],
        "DPO chosen": dpo[0],
        "DPO rejected": dpo[1],
    }


def reward_shift(seed: int) -> Figures:
    """Gradients of P3O and PPO when every reward of a prompt grows by a constant."""
    generator = torch.Generator().manual_seed(seed)
    logps = torch.randn(2, 64, generator=generator, dtype=F64)
    old = logps + 0.1 * torch.randn(2, 64, generator=generator, dtype=F64)
    rewards = torch.randn(2, 64, generator=generator, dtype=F64)

    def p3o(shift: float) -> Tensor:
        leaf = logps.clone().requires_grad_()
        pairwise_loss(
            "p3o", leaf[0], leaf[1], old[0], old[1],
            chosen_scores=rewards[0] + shift, rejected_scores=rewards[1] + shift,
        ).sum().backward()  # fmt: skip
        assert leaf.grad is not None
        return leaf.grad

    def ppo(shift: float) -> Tensor:
        leaf = logps.reshape(-1, 1).clone().requires_grad_()
        token_loss(
            "ppo", leaf, old.reshape(-1, 1), None, rewards.reshape(-1) + shift,
            torch.ones_like(leaf),
        ).backward()  # fmt: skip
        assert leaf.grad is not None
        return leaf.grad * leaf.numel()

    return {
        "P3O moves by": (p3o(3.0) - p3o(0.0)).abs().max().item(),
        "PPO by": (ppo(3.0) - ppo(0.0)).abs().max().item(),
    }


CLAIMS = [
    Claim(
        "IPO stays where DPO diverges on deterministic preferences",
        "arXiv:2310.12036",
        "DPO's margin doubles from 300 to 30,000 steps; IPO's moves less than 1e-6 after 1,000",
        deterministic_preferences,
        lambda f: f["h(30k)"] > 2 * f["DPO h(300)"] and abs(f["h(5k)"] - f["IPO h(1k)"]) < 1e-6,
        seeds=1,
        slow=True,
    ),
    Claim(
        "Nash-MD's last iterate converges, unregularised self-play cycles",
        "arXiv:2312.00886",
        "the last 1,000 policies move less than 1e-8, and more than 1e-2 without regularisation",
        nash_equilibrium,
        lambda f: f["Nash-MD moves"] < 1e-8 and f["without regularisation"] > 1e-2,
        seeds=1,
    ),
    Claim(
        "momentum makes iterative DPO faster (accelerated preference optimisation)",
        "arXiv:2410.06293",
        "iterations(a) <= 1.15 (1 - a) iterations(0) + 2",
        momentum,
        lambda f: all(f[f"a={a}"] <= 1.15 * (1 - a) * f["a=0.0"] + 2 for a in (0.3, 0.5, 0.7)),
        seeds=1,
    ),
    Claim(
        "SPPO raises the chosen response's log-prob more than DPO",
        "arXiv:2405.00675",
        "SPPO's change is positive and above DPO's",
        chosen_log_prob,
        lambda f: f["SPPO chosen"] > max(0.0, f["DPO chosen"]),
        seeds=1,
        note="at one margin both move both log-probs alike here; DPO's fall needs shared prefixes",
    ),
    Claim(
        "P3O does not see a constant in the rewards, PPO does",
        "arXiv:2310.00212",
        "P3O's gradient moves less than 1e-12, PPO's more than 1e-2",
        reward_shift,
        lambda f: f["P3O moves by"] < 1e-12 and f["PPO by"] > 1e-2,
    ),
]
