"""Evaluated responses, and the extremes of each round, as rows of files; and as text before and
after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyengine.loops import Evaluation
from pyengine.preferences.feedback import Feedback
from pyengine.preferences.groups import Group
from pyengine.recipes.schema.prompt_files import prompt_text

EXTREMES = 3  # responses of a round that are kept at either end


def sample_rows(round_number: int, evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row a prompt: its responses, their rewards, and the mean of the valid ones or None."""
    return [
        {
            "round": round_number,
            "index": index,
            "prompt": group.prompt,
            "completions": [r.text for r in group.responses],
            "finish_reasons": [r.finish_reason for r in group.responses],
            "rewards": rewards,
            "mean": mean,
        }
        for index, (group, rewards, mean) in enumerate(
            zip(evaluation.groups, evaluation.rewards, evaluation.prompt_means, strict=True)
        )
    ]


def extreme_rows(
    round_number: int, groups: Sequence[Group], feedback: Feedback | None
) -> list[dict[str, Any]]:
    """A round's responses of the highest and of the lowest rewards, best first: rows of
    round_samples.jsonl. At most EXTREMES of each, each response once; of equals the first.
    """
    rewards = [] if feedback is None else feedback.rewards
    known = [
        (reward, g, k)
        for g, row in enumerate(rewards)
        for k, reward in enumerate(row)
        if reward is not None
    ]
    order = sorted(known, key=lambda place: (-place[0], *place[1:]))
    top = order[: min(EXTREMES, -(-len(order) // 2))]
    bottom = order[len(top) :][-EXTREMES:]
    return [
        {
            "round": round_number,
            "side": side,
            "prompt": groups[g].prompt,
            "completion": groups[g].responses[k].text,
            "tokens": len(groups[g].responses[k].token_ids),
            "reward": reward,
        }
        for side, places in (("top", top), ("bottom", bottom))
        for reward, g, k in places
    ]


def before_and_after(
    rows: Sequence[dict[str, Any]], last_round: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of round 0 and of the last round, prompt by prompt."""
    before = {row["index"]: row for row in rows if row["round"] == 0}
    after = {row["index"]: row for row in rows if row["round"] == last_round}
    return [(before[index], after[index]) for index in sorted(before.keys() & after.keys())]


def comparison_markdown(rows: Sequence[dict[str, Any]], last_round: int) -> str:
    """The first response to every held-out prompt before and after training, with its reward."""
    parts = [f"# Held-out samples before and after {last_round} rounds\n"]
    for before, after in before_and_after(rows, last_round):
        parts.append(f"## {prompt_text(before['prompt'])}\n")
        for name, row in (("before", before), ("after", after)):
            reward = row["rewards"][0]
            score = "no reward" if reward is None else f"{reward:+.3f}"
            quoted = "\n".join(f"> {line}" for line in (row["completions"][0] or "").splitlines())
            parts.append(f"**{name}** ({score})\n\n{quoted or '> (empty)'}\n")
    return "\n".join(parts)
