"""One run as several ranks of this machine: whether they leave the same bits, and how fast.

    python benchmarks/ranks.py --model FOLDER --out FOLDER [--ranks 1,2,4] [--samples 2]

Online rounds of 8 prompts of the demo with 2 or more samples of 64 tokens, V = 4 shards, float32 or
bfloat16, rewards by length. The ranks share the cores: one rank has them all. Printed are, of
each number of ranks, medians of the rounds' phases after the first round, and whether weights,
moments, metrics and samples are those of the first number.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import commit, cpu_name

RECIPE = """
model: {model}
prompts: packaged:prompts_demo_train.jsonl
reward: brevity
objective: {{name: {objective}}}
sampling: {{n: {samples}, max_tokens: 64, ignore_eos: true}}
rounds: {rounds}
prompts_per_round: 8
checkpoint_every: {rounds}
engine: {{learning_rate: 1e-6, shards: {shards}, dtype: {dtype}}}
"""
PHASES = ("time/generate_s", "time/score_s", "time/update_s", "time/round_s")


def run(folder: Path, recipe: Path, ranks: int) -> Path:
    out = folder / f"{recipe.stem}-{ranks}"
    shutil.rmtree(out, ignore_errors=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *launch, "-m", "pyengine", "align", str(recipe), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def left(out: Path) -> dict[str, str]:
    """Digests of what the run leaves but times."""
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("checkpoints/*/*.safetensors"))
    }
    for name in ("metrics", "verdicts", "round_samples"):
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        kept = [
            {k: v for k, v in r.items() if "time/" not in k and "_per_s" not in k} for r in rows
        ]
        found[name] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    return found


def medians(out: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rounds: list[dict[str, Any]] = [row for row in rows if row["round"] > 1]
    return {
        name: statistics.median(row[name] for row in rounds) for name in PHASES if name in rounds[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--objectives", default="dpo,grpo")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--samples", type=int, default=2)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    print(f"{cpu_name()}, commit {commit()}, {asked.shards} shards, {asked.samples} samples")
    for objective in asked.objectives.split(","):
        for dtype in asked.dtypes.split(","):
            recipe = asked.out / f"{objective}-{dtype}.yaml"
            recipe.write_text(
                RECIPE.format(
                    model=asked.model.resolve(),
                    objective=objective,
                    dtype=dtype,
                    rounds=asked.rounds,
                    shards=asked.shards,
                    samples=asked.samples,
                )
            )
            first: dict[str, str] = {}
            for ranks in map(int, asked.ranks.split(",")):
                out = run(asked.out, recipe, ranks)
                found = left(out)
                first = first or found
                other = [name for name in first if first[name] != found.get(name)]
                times = ", ".join(
                    f"{name.removeprefix('time/').removesuffix('_s')} {value:.2f} s"
                    for name, value in medians(out).items()
                )
                same = f"other bits: {', '.join(other)}" if other else "the same bits"
                print(f"{objective} {dtype} {ranks} ranks: {times}; {same}", flush=True)


if __name__ == "__main__":
    main()
