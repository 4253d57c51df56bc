"""`pyengine generate`: sample responses to prompts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from pyengine.cli.arguments import Commands, add_model, add_raw, as_chats, prompts_of_file
from pyengine.cli.progress import CallBar
from pyengine.cli.sampling_flags import add_sampling, sampling_params
from pyengine.engine import Engine, SamplingParams, TokenEvent
from pyengine.errors import ConfigError, DataError
from pyengine.recipes.schema.prompt_files import prompt_text


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("generate", parents=[common], help="sample responses to prompts")
    add_model(parser)
    parser.add_argument("prompts", nargs="*", help="prompts; without any, stdin is one prompt")
    parser.add_argument("--file", help=".jsonl or .parquet file of prompts")
    parser.add_argument(
        "--column", default="prompt", help="with --file: the field that holds the prompt"
    )
    add_raw(parser)
    add_sampling(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON line a response, with log-probs"
    )
    parser.add_argument(
        "--stream", action="store_true", help="print one response while it is being sampled"
    )
    parser.add_argument(
        "--entropy", action="store_true", help="with --json: the entropy of every position in nats"
    )
    parser.set_defaults(run=generate)


def generate(args: argparse.Namespace) -> int:
    """Print every response."""
    params = _params(args)
    prompts = _prompts(args)
    if args.stream:
        _check_stream(args, len(prompts))
    engine = Engine.from_pretrained(args.model, dtype=args.dtype, reference="none")
    if args.stream:
        engine.generate(prompts, params, stream=_print_piece)
        print()
        return 0
    with CallBar(len(prompts) * params.n, "responses") as bar:
        groups = engine.generate(prompts, params, progress=bar.sampled)
    for index, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            if args.json:
                print(json.dumps(_row(index, k, group.prompt, response), ensure_ascii=False))
            else:
                heading = f"# {prompt_text(group.prompt)}\n" if len(groups) > 1 and k == 0 else ""
                print(f"{heading}{response.text}")
    return 0


def _check_stream(args: argparse.Namespace, count: int) -> None:
    for rule, valid, found in (
        ("come without --json", not args.json, "comes with it"),
        ("have one prompt", count == 1, f"has {count}"),
        ("have --n 1", args.n == 1, f"has --n {args.n}"),
    ):
        if not valid:
            raise ConfigError(f"[generate] --stream must {rule} but {found}")


def _print_piece(event: TokenEvent) -> None:
    print(event.text, end="", flush=True)


def _params(args: argparse.Namespace) -> SamplingParams:
    for name in ("top_logprobs", "entropy"):
        if getattr(args, name) and not args.json:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"[generate] --{flag} must come with --json, which shows it, but comes without"
            )
    return dataclasses.replace(sampling_params(args, "generate"), entropy=args.entropy)


def _prompts(args: argparse.Namespace) -> list[Any]:
    if args.file and args.prompts:
        raise ConfigError(
            "[generate] prompts must come from the command line or --file but both are given"
        )
    if args.file:
        prompts = prompts_of_file(args.file, args.column).prompts
    else:
        prompts = list(args.prompts) or [sys.stdin.read().rstrip("\n")]
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"[generate] prompts[{i}] must not be empty but is {prompt!r}")
    return as_chats(prompts, args.raw)


def _row(index: int, k: int, prompt: Any, response: Any) -> dict[str, Any]:
    row = {
        "prompt_index": index,
        "sample_index": k,
        "prompt": prompt,
        "text": response.text,
        "finish_reason": response.finish_reason,
        "token_ids": list(response.token_ids),
        "logprobs": list(map(float, response.logprobs)),
    }
    asked_for = {"entropy": response.entropy, "top_logprobs": response.top_logprobs}
    return row | {name: values for name, values in asked_for.items() if values is not None}
