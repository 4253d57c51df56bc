"""Records of runs made up for the page's tests; their texts try to be markup."""

from __future__ import annotations

import json
from pathlib import Path

from pyengine.reports.page.record import RunRecord

HOSTILE = (
    "</p><script>document.title = 'owned'</script><img src='http://example.invalid/x' "
    "onerror='alert(1)'> & \"quoted\" {{ 7 * 7 }} \u202eturned\u0000"
)


def rounds(**metrics):
    """Rows of rounds 1, 2, ...: metric -> its values. "__" in a name stands for "/"."""
    named = {name.replace("__", "/"): values for name, values in metrics.items()}
    count = max(map(len, named.values()))
    rows = [{"round": r + 1} for r in range(count)]
    for name, values in named.items():
        for row, value in zip(rows, values, strict=False):
            row[name] = value
    return rows


def record(rows=(), **fields):
    return RunRecord("run", list(rows), **fields)


def evaluated(place, *rewards, text="text"):
    """A row of samples a prompt: [prompt][response] rewards."""
    return [
        {
            "round": place, "index": i, "prompt": f"prompt {i}",
            "completions": [f"{text} {place}.{i}.{k}" for k in range(len(row))],
            "rewards": list(row), "mean": sum(row) / len(row),
        }
        for i, row in enumerate(rewards)
    ]  # fmt: skip


def write_run(folder: Path, count: int = 12, shift: float = 0.0) -> Path:
    """A run's files with something for each part of the page."""
    folder.mkdir(parents=True)
    rows = [
        {
            "round": r, "step": r,
            "objective/scores": 0.1 * r + shift, "objective/kl": 0.05 * r * r,
            "objective/entropy": 40.0 - r, "completions/mean_length": 20.0 + r,
            "completions/chosen_length": 22.0 + r, "completions/rejected_length": 19.0,
            "objective/length_correlation": 0.4, "frac_reward_zero_std": 0.25,
            "val/contain_eos_token": 0.5, "loss": 0.69 - 0.01 * r, "grad_norm": 3.0,
            "rewards/chosen": 0.02 * r, "rewards/rejected": -0.03 * r, "rewards/margins": 0.05 * r,
            "rewards/accuracies": 0.5 + 0.02 * r, "logps/chosen": -50.0 - r,
            "logps/rejected": -52.0 - r, "pairs/pairs": 8, "pairs/ties": r % 3, "judge/ties": 1,
            "judge/comparisons": 16, "judge/both_orders": 16, "judge/swap_disagreements": 3,
            "rounds_without_update": 0, "time/generate_s": 2.0, "time/reward_s": 0.5,
            "time/score_s": 0.3, "time/update_s": 1.0, "time/round_s": 4.0,
        }
        for r in range(1, count + 1)
    ]  # fmt: skip
    evaluations = {"eval/objective/scores_stderr": 0.05, "eval/completions/mean_length": 21.0}
    evaluations |= {"eval/pass@1": 0.5, "eval/pass@1_stderr": 0.1, "time/eval_s": 1.5}
    rows.insert(0, {"round": 0, "eval/objective/scores": 0.1} | evaluations)
    rows[-1] |= {"eval/objective/scores": 0.9} | evaluations
    samples = [
        row | {"prompt": HOSTILE}
        for place in (0, count)
        for row in evaluated(place, (0.1, 0.2 + place), (0.3, -0.4), text=HOSTILE)
    ]
    extremes = [
        {"round": r, "side": side, "prompt": "p", "completion": HOSTILE, "tokens": 3, "reward": 1.0}
        for r in range(1, count + 1)
        for side in ("top", "bottom")
    ]
    for name, lines in (
        ("metrics", rows), ("samples", samples), ("round_samples", extremes),
    ):  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder
