"""Peak memory of a DPO step beside TRL's: 4 pairs, prompts and responses of 64 tokens.

    python benchmarks/step_memory.py --model FOLDER [--trl-python PYTHON] [--cases f32,bf16,lora]

Each side runs in a process of its own, with defaults: AdamW, a frozen reference, gradients clipped
at 1. Printed are the most resident memory after three steps above that of the imported libraries,
the median seconds of the last two steps, and the engine's own plan of what such steps take: without
a sampler's KV cache, with weights packed a layer at a time instead of all, with activations of the
rows that they have, and with gradients in the memory of what they take turns with.

"lora" is float32 with adapters of rank 16 on all matrices of the layers.

TRL runs in another interpreter where its own environment is one (pip install trl peft).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import commit, cpu_name, peak_bytes

PAIRS, PROMPT, RESPONSE, RANK, STEPS = 4, 64, 64, 16, 3
CASES = {"f32": ("float32", None), "bf16": ("bfloat16", None), "lora": ("float32", RANK)}


def measured(imported: int, step: Callable[[], Any], load_s: float) -> dict[str, Any]:
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {
        "bytes": peak_bytes() - imported,
        "first_s": load_s + seconds[0],
        "step_s": statistics.median(seconds[1:]),
    }


def ours(model: Path, dtype: str, rank: int | None) -> dict[str, Any]:
    import torch

    import pyengine as pe

    imported, start = peak_bytes(), time.perf_counter()
    lora = None if rank is None else pe.LoraConfig(r=rank)
    engine = pe.Engine.from_pretrained(model, dtype=dtype, lora=lora, learning_rate=1e-6)
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(100, 40000, (count,), generator=generator).tolist()

    def step() -> None:
        groups = [
            pe.Group(ids(PROMPT), [pe.Response(ids(RESPONSE)) for _ in range(2)])
            for _ in range(PAIRS)
        ]
        pairs = [pe.Comparison(i, 0, 1) for i in range(PAIRS)]
        engine.update(pe.Preferences(groups, pairs), pe.objectives.DPO())

    told = measured(imported, step, time.perf_counter() - start)
    return told | {"plan": planned(engine, rank)}


def planned(engine: Any, rank: int | None) -> int:
    """What the engine's plan says of such a step, which is one micro-batch and packs in passing."""
    from pyengine.engine.learn.tape import saved_bytes_per_row
    from pyengine.engine.memory import activation_bytes_per_token

    use, rows = engine._footprint.use(), PAIRS * (PROMPT + 2 * RESPONSE)
    spec, parts = use.spec, dict(engine.memory_plan().parts)
    parts["activations"] = rows * activation_bytes_per_token(spec, use.compute, use.device)
    parts["packed"] = parts["packed by columns"]  # as much by rows
    parts["KV cache"] = 0
    total = sum(parts.values())
    if rank is not None:
        return total
    # Layers' gradients take turns with activations, and the head's with the head by columns.
    layer = rows * saved_bytes_per_row(spec, use.compute)
    head = spec.vocab_size * spec.hidden_size
    gradients = (parts["gradients"] - 4 * head) // spec.num_layers
    in_turns = (spec.num_layers - 1) * min(layer, gradients)
    return total - in_turns - use.compute.itemsize * head


def trl(model: Path, dtype: str, rank: int | None) -> dict[str, Any]:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401
    from peers.trl_steps import TrlSteps
    from trl import DPOConfig, DPOTrainer  # noqa: F401

    imported, start = peak_bytes(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        bf16 = dtype == "bfloat16"
        steps = TrlSteps(model, bf16, PAIRS, PROMPT, RESPONSE, Path(out), rank)
        told = measured(imported, steps.step, time.perf_counter() - start)
        steps.close()
    return told


def run(python: str, side: str, case: str, model: Path) -> dict[str, Any]:
    command = [python, __file__, "--side", side, "--cases", case, "--model", str(model)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--only", choices=("pyengine", "trl"), help="one side alone")
    parser.add_argument("--side", choices=("pyengine", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    if arguments.side:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        side = {"pyengine": ours, "trl": trl}[arguments.side]
        return print(json.dumps(side(model, *CASES[arguments.cases])))
    print(f"{cpu_name()}, commit {commit()}, {PAIRS} pairs, {PROMPT}+{RESPONSE} tokens")
    pythons = {"pyengine": sys.executable, "trl": arguments.trl_python}
    for case in arguments.cases.split(","):
        told = {
            side: run(python, side, case, model)
            for side, python in pythons.items()
            if arguments.only in (None, side)
        }
        for side, row in told.items():
            plan = f", plan {row['plan'] / 1e9:.2f} GB" if "plan" in row else ""
            print(
                f"{case:<5} {side:<9} {row['bytes'] / 1e9:.2f} GB{plan}; load and first step "
                f"{row['first_s']:.1f} s, a step {row['step_s']:.2f} s",
                flush=True,
            )
        if len(told) == 2:
            mine, theirs = told["pyengine"], told["trl"]
            print(
                f"{case:<5} {mine['bytes'] / theirs['bytes']:.2f} of TRL's memory, "
                f"{theirs['step_s'] / mine['step_s']:.2f} times its speed",
                flush=True,
            )


if __name__ == "__main__":
    main()
