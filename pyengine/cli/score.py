"""`pyengine score`: log-probabilities of given completions."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyengine.cli.arguments import Commands, add_model
from pyengine.cli.progress import CallBar
from pyengine.data.formats import read_rows
from pyengine.data.validate import check_completion
from pyengine.engine import Engine
from pyengine.errors import ConfigError
from pyengine.preferences.groups import Group, Response


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "score", parents=[common], help="log-probabilities of prompt/completion rows"
    )
    add_model(parser)
    parser.add_argument(
        "file", help=".jsonl or .parquet file with the fields prompt and completion"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="also each token's id and log-probability"
    )
    parser.set_defaults(run=score)


def score(args: argparse.Namespace) -> int:
    """Print one JSON line a row: its log-probability (nats, summed) and token count."""
    rows = read_rows(args.file)
    checked = [check_completion(row, rows.where(i)) for i, row in enumerate(rows)]
    engine = Engine.from_pretrained(args.model, dtype=args.dtype, reference="none")
    if engine.tokenizer is None:
        raise ConfigError(f"[score] --model must have a tokenizer but {args.model} has none")
    groups: dict[tuple[int, ...], tuple[int, Group]] = {}
    places = []
    for prompt, completion in checked:
        prompt_ids, token_ids = engine.tokenizer.encode_completion(prompt, completion)
        # Completions of one prompt share a group, so the prompt is computed once.
        index, group = groups.setdefault(
            tuple(prompt_ids), (len(groups), Group(prompt_ids=list(prompt_ids)))
        )
        places.append((index, len(group.responses)))
        group.responses.append(Response(token_ids=list(token_ids)))
    members = [group for _, group in groups.values()]
    with CallBar(len(members), "prompts") as bar:
        scores = engine.score(members, progress=bar.scored)
    for index, k in places:
        print(json.dumps(_line(scores[index][k], members[index].responses[k], args.tokens)))
    return 0


def _line(result: Any, response: Response, with_tokens: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"logprob": float(result.logprob), "tokens": len(response.token_ids)}
    if with_tokens:
        line["token_ids"] = response.token_ids
        line["token_logprobs"] = [float(x) for x in result.token_logprobs]
    return line
