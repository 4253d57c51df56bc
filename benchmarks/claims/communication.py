"""Claims about what machines that train together must send one another; NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
from claim import Claim, Figures
from numpy.typing import NDArray

Array = NDArray[np.float64]

# --- One byte a step: SPSA with shared randomness ---

WORKERS, FEATURES, STEPS, EPSILON, CLIP, RATE = 4, 200, 300, 1e-3, 8.0, 5e-3


class Machine:
    """Weights that are a function of the log of bytes alone: perturbations are drawn anew."""

    def __init__(self, seed: int) -> None:
        self.seed, self.weights = seed, np.zeros(FEATURES)

    def perturbations(self, step: int) -> Array:
        """(workers, features), the same on every machine: a counter's, keyed by seed and step."""
        key = np.array([self.seed, step], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).standard_normal((WORKERS, FEATURES))

    def slope(self, z: Array, x: Array, y: Array) -> float:
        """(L(w + eps z) - L(w - eps z)) / (2 eps) on the worker's own batch."""
        ahead, behind = (logistic(self.weights + e * z, x, y) for e in (EPSILON, -EPSILON))
        return (ahead - behind) / (2 * EPSILON)

    def apply(self, step: int, slopes: dict[int, float]) -> None:
        """One step of what all who took part have sent, in the order of their numbers."""
        z = self.perturbations(step)
        for worker in sorted(slopes):
            self.weights = self.weights - RATE / len(slopes) * slopes[worker] * z[worker]


def logistic(weights: Array, x: Array, y: Array) -> float:
    return float(np.logaddexp(0, -y * (x @ weights)).mean())


def to_byte(slope: float) -> int:
    """-127 to 127."""
    return round(max(-1.0, min(1.0, slope / CLIP)) * 127)


def from_byte(byte: int) -> float:
    return byte * CLIP / 127


def one_byte(seed: int) -> Figures:
    """Logistic regression, 200 features, four workers with 200 examples each, batches of 32.

    In the run of bytes worker 3 is away for the middle third; a new machine then reads the log,
    takes its place, and is there until the end.
    """
    draw = np.random.default_rng(seed)
    truth = draw.standard_normal(FEATURES) / math.sqrt(FEATURES) * 3
    shift = 0.3 * draw.standard_normal((WORKERS, 1, FEATURES))  # each has data of its own kind
    x = draw.standard_normal((WORKERS, 200, FEATURES)) + shift
    y = np.sign(x @ truth + 0.3 * draw.standard_normal((WORKERS, 200)))
    batches = draw.integers(0, 200, (STEPS, WORKERS, 32))

    def run(as_bytes: bool, leaves: bool) -> tuple[Machine, list[dict[int, int]], Machine | None]:
        first, joined, log = Machine(seed), None, []
        for step in range(STEPS):
            if leaves and step == STEPS * 2 // 3:
                joined = Machine(seed)
                for past, sent in enumerate(log):
                    joined.apply(past, {w: from_byte(b) for w, b in sent.items()})
            away = leaves and STEPS // 3 <= step < STEPS * 2 // 3
            slopes = {}
            z = first.perturbations(step)
            for worker in range(WORKERS - away):
                machine = joined if worker == WORKERS - 1 and joined is not None else first
                rows = batches[step, worker]
                slopes[worker] = machine.slope(z[worker], x[worker, rows], y[worker, rows])
            if as_bytes:
                log.append({w: to_byte(s) for w, s in slopes.items()})
                slopes = {w: from_byte(b) for w, b in log[-1].items()}
            for machine in (first, joined):
                if machine is not None:
                    machine.apply(step, slopes)
        return first, log, joined

    def loss(machine: Machine) -> float:
        return logistic(machine.weights, x.reshape(-1, FEATURES), y.reshape(-1))

    whole, _, _ = run(as_bytes=False, leaves=False)
    byte, log, _ = run(as_bytes=True, leaves=False)
    left, _, joined = run(as_bytes=True, leaves=True)
    assert joined is not None
    return {
        "loss at start": math.log(2),
        "float64": loss(whole),
        "one byte": loss(byte),
        "bytes a step": float(np.mean([len(sent) for sent in log])),
        "a gradient's bytes (float32)": 4.0 * FEATURES,
        "one away": loss(left),
        "weights that differ after joining": float((left.weights != joined.weights).sum()),
    }


# --- Error feedback: quadratics of unlike smoothness, of whose gradients one entry is sent ---


def top1(rows: Array) -> Array:
    """The largest entry of each row in size, the rest 0."""
    kept, place = np.zeros_like(rows), np.abs(rows).argmax(1)
    every = np.arange(len(rows))
    kept[every, place] = rows[every, place]
    return kept


class Quadratics:
    """f_i(x) = x' A_i x / 2 - b_i' x of `smoothness[i]` = the largest eigenvalue of A_i."""

    def __init__(self, draw: np.random.Generator, smoothness: Array, d: int) -> None:
        n = len(smoothness)
        bases = np.linalg.qr(draw.standard_normal((n, d, d)))[0]
        values = draw.uniform(0.1, 1.0, (n, d))
        values[:, 0] = 1.0
        self.smoothness = smoothness
        self.hessians = smoothness[:, None, None] * np.einsum(
            "nij,nj,nkj->nik", bases, values, bases
        )
        self.linear = 3 * np.sqrt(smoothness)[:, None] * draw.standard_normal((n, d))
        self.start = draw.standard_normal(d)
        self.mean_hessian, self.mean_linear = self.hessians.mean(0), self.linear.mean(0)
        self.L = float(np.linalg.eigvalsh(self.mean_hessian)[-1])

    def gradients(self, x: Array) -> Array:
        """(n, d), one of each worker."""
        return np.asarray(self.hessians @ x) - self.linear

    def norm(self, x: Array) -> float:
        """Of the mean gradient."""
        return float(np.linalg.norm(self.mean_hessian @ x - self.mean_linear))


def weighted_feedback(seed: int) -> Figures:
    """20 workers, 30 numbers; one worker 200 times as curved as the others; 3,000 steps.

    Steps are as long as the theorems allow: 1 / (L + M sqrt(beta / theta)), M the quadratic mean of
    the workers' smoothness for EF21 and the arithmetic one for EF21-W.
    """
    n, d, steps = 20, 30, 3000
    smoothness = np.ones(n)
    smoothness[0] = 200.0
    f = Quadratics(np.random.default_rng(seed), smoothness, d)
    alpha = 1 / d
    theta = 1 - math.sqrt(1 - alpha)
    ratio = math.sqrt((1 - alpha) / theta / theta)
    quadratic, arithmetic = math.sqrt((smoothness**2).mean()), smoothness.mean()
    old, new = 1 / (f.L + quadratic * ratio), 1 / (f.L + arithmetic * ratio)

    def ef21(rate: float, weights: Array) -> float:
        x, scale = f.start, 1 / (n * weights[:, None])
        sent = f.gradients(x) * scale
        for _ in range(steps):
            x = x - rate * (weights @ sent)
            sent = sent + top1(f.gradients(x) * scale - sent)
        return f.norm(x)

    def without(rate: float) -> float:
        x = f.start
        for _ in range(steps):
            x = x - rate * top1(f.gradients(x)).mean(0)
        return f.norm(x)

    equal = np.full(n, 1 / n)
    return {
        "at start": f.norm(f.start),
        "rate EF21": old,
        "rate EF21-W": new,
        "L_QM / L_AM": quadratic / float(arithmetic),
        "|g| EF21": ef21(old, equal),
        "|g| EF21-W": ef21(new, smoothness / smoothness.sum()),
        "|g| EF21 at EF21-W's rate": ef21(new, equal),
        "|g| no feedback": without(new),
    }


def controlled(f: Quadratics, rate: float, eta: float, steps: int, noise: Array | None) -> float:
    """EControl: the error is fed back eta at a time. Mean |g| of the last tenth of the steps."""
    x, n, norms = f.start, len(f.smoothness), []
    error, known = np.zeros((n, len(x))), np.zeros((n, len(x)))
    for step in range(steps):
        g = f.gradients(x) + (0 if noise is None else noise[step])
        delta = top1(eta * error + g - known)
        x = x - rate * (known + delta).mean(0)
        error = error + g - known - delta
        known = known + delta
        if step >= steps * 9 // 10:
            norms.append(f.norm(x))
    return float(np.mean(norms))


def classic(f: Quadratics, rate: float, steps: int) -> float:
    """Error compensation: what was not sent is added to the next message."""
    x, error, norms = f.start, np.zeros((len(f.smoothness), len(f.start))), []
    for step in range(steps):
        message = error + rate * f.gradients(x)
        sent = top1(message)
        error = message - sent
        x = x - sent.mean(0)
        if step >= steps * 9 // 10:
            norms.append(f.norm(x))
    return float(np.mean(norms))


def markov(f: Quadratics, rate: float, steps: int, noise: Array) -> float:
    """EF21 on noisy gradients."""
    x, norms = f.start, []
    sent = f.gradients(x) + noise[0]
    for step in range(steps):
        x = x - rate * sent.mean(0)
        sent = sent + top1(f.gradients(x) + noise[step] - sent)
        if step >= steps * 9 // 10:
            norms.append(f.norm(x))
    return float(np.mean(norms))


def error_control(seed: int) -> Figures:
    """10 workers, 20 numbers, of which one is sent; equal smoothness and unlike minima."""
    draw = np.random.default_rng(seed)
    n, d, steps = 10, 20, 2000
    f = Quadratics(draw, np.ones(n), d)
    noise = draw.standard_normal((steps, n, d))
    return {
        "at start": f.norm(f.start),
        "EControl": controlled(f, 0.05 / f.L, 0.05, steps, None),
        "classic": classic(f, 0.05 / f.L, steps),
        "noise, 0.03 / L EControl": controlled(f, 0.03 / f.L, 0.03, steps, noise),
        "noise, 0.03 / L EF21": markov(f, 0.03 / f.L, steps, noise),
        "noise, 0.3 / L EControl": controlled(f, 0.3 / f.L, 0.03, steps, noise),
        "noise, 0.3 / L EF21": markov(f, 0.3 / f.L, steps, noise),
    }


CLAIMS = [
    Claim(
        "one byte a worker and step trains as well as whole numbers, and replays to the bit",
        "arXiv:2306.10015",
        "loss within 1 % of SPSA with exact slopes; a machine that joins by the log of bytes has "
        "the others' weights, bit for bit",
        one_byte,
        lambda f: (
            abs(f["one byte"] / f["float64"] - 1) < 0.01
            and f["weights that differ after joining"] == 0
        ),
    ),
    Claim(
        "EF21-W's longer steps, by the arithmetic mean of the workers' smoothness, pay",
        "arXiv:2402.10774",
        "one worker 200 times as curved as 19 others, one number of 30 sent: after 3,000 steps the "
        "gradient is at least 10 times smaller than EF21's",
        weighted_feedback,
        lambda f: 10 * f["|g| EF21-W"] <= f["|g| EF21"],
        note="EF21 with EF21-W's step is the same here: what is largest does not depend on weights",
    ),
    Claim(
        "EControl converges where classic error compensation stalls, and tames noise",
        "arXiv:2311.05645",
        "|g| without noise < 1e-10, the classic's above 0.1; with noise below EF21's at steps of "
        "0.03 / L, one number of 20 sent",
        error_control,
        lambda f: (
            f["EControl"] < 1e-10
            and f["classic"] > 0.1
            and f["noise, 0.03 / L EControl"] < f["noise, 0.03 / L EF21"]
        ),
        note="at steps of 0.3 / L EF21 is ahead under noise; at 0.1 / L and eta = 0.1 EControl "
        "diverges",
    ),
]
