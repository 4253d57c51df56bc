"""`pyengine generate`: sample responses to prompts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from pyengine.cli.arguments import Commands, add_model
from pyengine.engine import Engine, SamplingParams
from pyengine.errors import ConfigError, DataError
from pyengine.recipes.prompts import load_prompts, prompt_text
from pyengine.recipes.schema import PromptsSpec

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SamplingParams)}
_HELP = {
    "n": "responses a prompt",
    "temperature": "0 is greedy",
    "top_k": "sample among the k likeliest tokens; 0: all",
    "top_p": "sample among the likeliest tokens that hold this probability",
    "min_p": "drop tokens less likely than this share of the likeliest",
    "max_tokens": "longest response in tokens",
    "seed": "of the draws",
}


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("generate", parents=[common], help="sample responses to prompts")
    add_model(parser)
    parser.add_argument("prompts", nargs="*", help="prompts; without any, stdin is one prompt")
    parser.add_argument("--file", help=".jsonl or .parquet file of prompts")
    parser.add_argument(
        "--column", default="prompt", help="with --file: the field that holds the prompt"
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the chat template"
    )
    for name, text in _HELP.items():
        default = _DEFAULTS[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{text} (default: {default})",
        )
    parser.add_argument(
        "--stop", action="append", default=[], help="text that ends a response; repeatable"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON line a response, with log-probs"
    )
    parser.set_defaults(run=generate)


def generate(args: argparse.Namespace) -> int:
    """Print every response."""
    params = SamplingParams(stop=tuple(args.stop), **{name: getattr(args, name) for name in _HELP})
    prompts = _prompts(args)
    engine = Engine.from_pretrained(args.model, dtype=args.dtype, reference="none")
    groups = engine.generate(prompts, params)
    for index, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            if args.json:
                print(json.dumps(_row(index, k, group.prompt, response), ensure_ascii=False))
            else:
                heading = f"# {prompt_text(group.prompt)}\n" if len(groups) > 1 and k == 0 else ""
                print(f"{heading}{response.text}")
    return 0


def _prompts(args: argparse.Namespace) -> list[Any]:
    if args.file and args.prompts:
        raise ConfigError(
            "[generate] prompts must come from the command line or --file but both are given"
        )
    if args.file:
        prompts = load_prompts(PromptsSpec(str(Path(args.file).absolute()), args.column)).prompts
    else:
        prompts = list(args.prompts) or [sys.stdin.read().rstrip("\n")]
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"[generate] prompts[{i}] must not be empty but is {prompt!r}")
    if args.raw:
        return prompts
    return [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]


def _row(index: int, k: int, prompt: Any, response: Any) -> dict[str, Any]:
    return {
        "prompt_index": index,
        "sample_index": k,
        "prompt": prompt,
        "text": response.text,
        "finish_reason": response.finish_reason,
        "token_ids": list(response.token_ids),
        "logprobs": list(map(float, response.logprobs)),
    }
