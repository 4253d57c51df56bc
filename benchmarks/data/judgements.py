"""Makes judgements_demo_train.jsonl and judgements_demo_heldout.jsonl, which packaged recipes read,
anew.

    python benchmarks/data/judgements.py pyengine/recipes/data

Questions to a judge in words: which of two responses to a prompt is the more cheerful one. They are
the two answers of answers_demo.jsonl, which were written by hand, one warm and one flat. Every pair
is asked about in both orders, so that no place is right more often; its two questions are in one
file, and the last quarter of the prompts is held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HELD_OUT = 8  # prompts
QUESTION = (
    "Two people wrote a text for this request: {prompt}\n\n"
    "Text A: {a}\n\n"
    "Text B: {b}\n\n"
    'Which text is more cheerful? Say why in one short sentence, then end with "Answer: A" or '
    '"Answer: B".'
)


def asked(row: Row) -> list[Row]:
    """Both questions about the answers of a row, with the letter that is right."""
    prompt = row["prompt"][-1]["content"]
    warm, flat = row["answer"], row["flat"]
    return [
        {
            "prompt": [
                {"role": "user", "content": QUESTION.format(prompt=prompt, a=first, b=second)}
            ],
            "answer": right,
        }
        for first, second, right in ((warm, flat, "A"), (flat, warm, "B"))
    ]


def files(folder: Path) -> dict[str, list[Row]]:
    """The rows of each file by its name."""
    lines = (folder / "answers_demo.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    parts = {"train": rows[:-HELD_OUT], "heldout": rows[-HELD_OUT:]}
    return {
        f"judgements_demo_{name}.jsonl": [question for row in part for question in asked(row)]
        for name, part in parts.items()
    }


def main() -> None:
    folder = Path(sys.argv[1])
    for name, rows in files(folder).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
