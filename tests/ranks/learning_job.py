"""What ranks do together in test_same_bits: `learning_job.py MODEL [CASE ...]` prints, on rank 0, a
digest of all that each case leaves: weights, moments, metrics and samples."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

import pyengine as pe
from pyengine.ranks.launch import joined

SHARDS, ROUNDS = 4, 10
THINGS = ("rain", "a red boat", "bread and salt", "it", "x" * 40)
PROMPTS = [f"Tell me of {what}." for what in THINGS]


def reward(completions: list[str], **_: Any) -> list[float]:
    return [(sum(map(ord, c)) % 97) / 97 - 0.01 * len(c) for c in completions]


def case(model: str, objective: Any, **options: Any) -> dict[str, str]:
    if "optimizer" not in options:
        options["learning_rate"] = 1e-3
    options.setdefault("dtype", "float32")  # not what this CPU is fastest in
    engine = pe.Engine.from_pretrained(model, shards=SHARDS, kv_tokens=4096, **options)
    sampling = pe.SamplingParams(n=3, max_tokens=12, seed=5)
    source = pe.preferences.Derived(
        pe.preferences.RewardFunction(reward), label_threshold=0.3, bradley_terry_scale=0.2
    )
    loop = pe.loops.Online(
        engine,
        PROMPTS,
        source=source,
        pairing=pe.preferences.AllPairs(),
        objective=objective,
        sampling=sampling,
        prompts_per_round=4,
    )
    reports, samples = [], []
    for report in loop.run(ROUNDS):
        reports.append({k: v for k, v in report.items() if "time" not in k and "per_s" not in k})
        samples.append([[vars(r) for r in g.responses] for g in loop.last_groups])
    rows = [{"prompt": p, "chosen": " yes, it is", "rejected": " no"} for p in PROMPTS]
    offline = pe.loops.Offline(
        engine, pe.Preferences.from_rows(rows, engine), pe.objectives.IPO(), batch_size=3
    )
    reports += [
        {k: v for k, v in r.items() if "time" not in k and "per_s" not in k}
        for r in offline.run(offline.rounds)
    ]
    both = pe.Preferences.from_rows(rows, engine)
    engine.forward_backward(both, pe.objectives.DPO())
    engine.forward_backward(both, pe.objectives.NLL(), scale=0.2)
    gradients = _digest(dict(engine.named_gradients()))
    reports.append(engine.step())
    reports.append(engine.measure(pe.Preferences.from_rows(rows, engine), pe.objectives.DPO()))
    moments = engine._network.optimizer.state_tensors()
    weights = {n: p.detach() for n, p in engine._network.parameters.items()}
    found = {"weights": _digest(weights), "moments": _digest(moments)}
    found["gradients"] = gradients
    return found | {
        name: hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
        for name, value in (("metrics", reports), ("samples", samples))
    }


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def main(model: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    o = pe.objectives
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "dpo": (o.DPO(), {}),
        "dpo in parts": (o.DPO(), {"micro_batch_tokens": 64}),
        "dpo, bfloat16": (o.DPO(), {"dtype": "bfloat16"}),
        "dpo, 8 bits": (o.DPO(), {"optimizer_bits": 8}),
        "kto": (o.KTO(), {}),
        "grpo": (o.GRPO(beta=0.04), {}),
        "grpo, bfloat16": (o.GRPO(beta=0.04), {"dtype": "bfloat16"}),
        "aot": (o.get("aot"), {}),
        "aot in parts": (o.get("aot"), {"micro_batch_tokens": 64}),
        "lora": (o.DPO(), {"lora": pe.LoraConfig(r=4, alpha=8)}),
        "lion": (o.DPO(), {"optimizer": pe.optim.Lion(learning_rate=1e-4)}),
    }
    chosen = {name: cases[name] for name in names or cases}
    return {name: case(model, of, **options) for name, (of, options) in chosen.items()}


if __name__ == "__main__":
    with joined(pe.__version__) as world:
        found = main(sys.argv[1], sys.argv[2:])
        if world.rank == 0:
            print(json.dumps(found))
