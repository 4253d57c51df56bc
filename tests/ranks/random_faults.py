"""Faults at random moments of a run of several ranks: by hand, since it takes minutes.

    python tests/ranks/random_faults.py --count 20 [--seed 0]

Each time two or four ranks run a recipe on a tiny model; at a random moment one of them is killed
or stopped, or its disk takes no more, or the port is another program's. All must end within the
silence that is allowed, each with at most one sentence; the run, gone on with by another number
of ranks, must end with the files of one that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import write_tiny_model
from ranks.test_ranked_runs import RECIPE, left
from ranks.together import finished, start_ranks

SILENCE_S = 3
FAULTS = ("kill", "kill", "kill", "stop", "full disk", "taken port")


def prepared(folder: Path) -> Path:
    (folder / "model").mkdir()
    write_tiny_model(folder / "model")
    rows = (json.dumps({"prompt": f"Say something of {i}."}) + "\n" for i in range(6))
    (folder / "prompts.jsonl").write_text("".join(rows))
    (folder / "r.yaml").write_text(RECIPE.format(model=folder / "model"))
    return folder / "r.yaml"


def command(recipe: Path, out: Path, *more: str) -> list[str | Path]:
    return ["-m", "pyengine", "align", recipe, "--out", out, *more]


def broken(
    fault: str, recipe: Path, out: Path, size: int, draw: random.Random, whole_s: float
) -> str:
    """Runs until the fault has ended all; what was said, by rank."""
    # A rank that never began is waited for until the deadline.
    env = {"PYENGINE_RANK_SILENCE_S": str(SILENCE_S), "PYENGINE_RANK_DEADLINE_S": "20"}
    taken = None
    if fault == "full disk":  # of a file, which is where a run's disk ends first
        env["PYENGINE_TEST_FILE_BYTES"] = str(draw.randrange(20_000, 200_000))
    if fault == "taken port":
        taken = socket.create_server(("127.0.0.1", 0))
        env |= {"MASTER_PORT": str(taken.getsockname()[1]), "PYENGINE_RANK_DEADLINE_S": "5"}
    start = [Path(__file__).with_name("limited.py"), *command(recipe, out)[1:]]
    ranks = start_ranks(size, start, **env)
    victim = draw.randrange(size)
    if fault in ("kill", "stop"):
        time.sleep(draw.uniform(0, whole_s))
        ranks[victim].send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    others = [r for i, r in enumerate(ranks) if fault != "stop" or i != victim]
    began = time.monotonic()
    try:
        said = finished(others, timeout_s=60)
    finally:
        for rank in ranks:
            rank.kill()
    for status, _, err in said:
        sentences = [line for line in err.splitlines() if line.startswith("pyengine: ")]
        assert len(sentences) <= 1, err
        assert "Traceback" not in err, err
        assert status in (0, 2, -signal.SIGKILL), (status, err)
    if taken is not None:
        taken.close()
    reasons = {err.splitlines()[-1] for status, _, err in said if status == 2}
    return f"{time.monotonic() - began:.1f} s to end; {' | '.join(sorted(reasons)) or 'all done'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        recipe = prepared(Path(scratch))
        alone = Path(scratch) / "alone"
        began = time.monotonic()
        [(status, _, err)] = finished(start_ranks(1, command(recipe, alone)))
        assert status == 0, err
        whole_s = time.monotonic() - began
        for i in range(asked.count):
            fault, size = FAULTS[i % len(FAULTS)], draw.choice([2, 4])
            out = Path(scratch) / f"run-{i}"
            said = broken(fault, recipe, out, size, draw, whole_s * size / 2)
            kept = len(list(out.glob("checkpoints/*"))) if out.exists() else 0
            again = draw.choice([n for n in (1, 2, 4) if n != size])
            done = (out / "result.json").exists()
            more = [] if done else ["--resume"]
            if not done:
                ended = finished(start_ranks(again, command(recipe, out, *more)))
                assert all(status == 0 for status, _, _ in ended), ended
            here, there = left(out), left(alone)
            other = [n for n in sorted({*here, *there}) if here.get(n) != there.get(n)]
            assert not other, f"{fault}: other bits of {other}"
            print(
                f"{i:>2} {size} -> {again} ranks, {fault}, {kept} checkpoints: {said}", flush=True
            )
    print("nothing was lost")


if __name__ == "__main__":
    main()
