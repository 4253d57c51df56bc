"""`pyengine compare A B`: two models on the same prompts, side by side, and who wins how often."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pyengine.cli.arguments import Commands, add_dtype, add_raw, as_chats, prompts_of_file
from pyengine.cli.progress import CallBar
from pyengine.cli.sampling_flags import add_sampling, sampling_params
from pyengine.engine import Engine, SamplingParams
from pyengine.engine.calls.requests import requests_of
from pyengine.engine.infer.generation import check_requests
from pyengine.engine.persist.engine_state import load_tokenizer
from pyengine.errors import ConfigError, PyengineError
from pyengine.files import atomic_write
from pyengine.loops.evaluate import Evaluation, attach_columns, judged
from pyengine.loops.head_to_head import head_to_head
from pyengine.models.decoder import Decoder
from pyengine.models.loader import read_spec
from pyengine.models.source import resolve
from pyengine.models.spec import DecoderSpec
from pyengine.preferences import RewardFunction
from pyengine.preferences.groups import Group
from pyengine.recipes.schema.prompt_files import Prompts
from pyengine.recipes.schema.rewards import load_reward
from pyengine.reports.side_by_side import as_markdown, as_text, document

_WIDTH = 100  # where there is no terminal


def add_command(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "compare", parents=[common], help="two models' samples side by side, and a win rate"
    )
    parser.add_argument("a", metavar="A", help="a model, as for `generate`; its win rate is shown")
    parser.add_argument("b", metavar="B", help="the model that it is compared with")
    add_dtype(parser, default="auto", trains=False)
    parser.add_argument("--prompts", required=True, help=".jsonl or .parquet file of prompts")
    parser.add_argument("--column", default="prompt", help="the field that holds the prompt")
    add_raw(parser)
    parser.add_argument(
        "--source",
        help="what says which sample is better: vader, or a reward function as file.py:function "
        "(with --allow-code); without it there is no win rate",
    )
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="let --source run the Python code that it names; read that code first",
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=60.0,
        help="seconds for the rewards of one model's samples; later ones count as failed "
        "(default: 60)",
    )
    add_sampling(parser, without=("top_logprobs",))
    parser.add_argument(
        "--show", type=int, default=3, help="prompts whose first samples are printed (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with everything")
    parser.add_argument("--out", metavar="FILE.md", help="write all samples side by side, Markdown")
    parser.set_defaults(run=compare)


def compare(args: argparse.Namespace) -> int:
    """Sample both models with the same draws, judge both, and print what came of it."""
    params = sampling_params(args, "compare")
    _check_output(args)
    source = None
    if args.source is not None:
        reward = load_reward(args.source, allow_code=args.allow_code)
        source = RewardFunction(reward, timeout_s=args.timeout_s, name=args.source)
    prompts = prompts_of_file(args.prompts, args.column)
    prompts = Prompts(as_chats(prompts.prompts, args.raw), prompts.columns)
    models = [args.a, args.b]
    specs = [_checked(model, prompts, params) for model in models]
    groups: list[list[Group]] = []
    evaluations: list[Evaluation] = []
    for engine in _engines(models, args.dtype, specs[1]):
        groups.append(_sample(engine, prompts, params))
        del engine  # before the next one is loaded
        if source is not None:
            evaluations.append(judged(groups[-1], source))
    result = head_to_head(*evaluations) if evaluations else None
    data = document(models, groups, _plain(params), args.source, evaluations, result)
    if args.json:
        print(json.dumps(data, ensure_ascii=False))
    else:
        print(as_text(data, shutil.get_terminal_size((_WIDTH, 24)).columns, args.show))
    for message in [m for evaluation in evaluations for m in evaluation.errors]:
        print(message, file=sys.stderr)
    if args.out:
        atomic_write(Path(args.out), as_markdown(data))
    return 0


def _check_output(args: argparse.Namespace) -> None:
    if args.show < 0:
        raise ConfigError(f"[compare] --show must be >= 0 but is {args.show}")
    if args.out is None:
        return
    out = Path(args.out)
    if out.is_dir():
        raise ConfigError(f"[compare] --out must be a file but {out} is a folder")
    if not out.parent.is_dir():
        raise ConfigError(f"[compare] --out must be in a folder that exists but is {out}")


def _checked(model: str, prompts: Prompts, params: SamplingParams) -> DecoderSpec:
    """The model's description, if it takes every prompt: known before any model is loaded."""
    source = resolve(model)
    spec, tokenizer = read_spec(source), load_tokenizer(source)
    try:
        requests = requests_of(prompts.prompts, params, None, tokenizer, 0)
        check_requests(requests, spec, tokenizer is not None)
    except PyengineError as error:
        raise type(error)(f"[compare] {model} must take every prompt but: {error}") from error
    return spec


def _engines(models: Sequence[str], dtype: str, second: DecoderSpec) -> Iterator[Engine]:
    """One engine after the other; both are loaded before the first is used where both fit."""

    def load(model: str) -> Engine:
        print(f"loading {model}", file=sys.stderr, flush=True)
        return Engine.from_pretrained(model, dtype=dtype, reference="none")

    loaded = [load(models[0])]
    if _fits_beside(loaded[0], second):
        loaded.append(load(models[1]))
    yield loaded.pop(0)
    gc.collect()  # an engine's parts refer to each other
    yield loaded.pop(0) if loaded else load(models[1])


def _fits_beside(engine: Engine, second: DecoderSpec) -> bool:
    """Whether another model's weights take at most half of what `engine` leaves when it samples."""
    plan = engine.memory_plan()
    coming = sum(size for part, size in plan.parts if part in ("packed", "KV cache"))
    with torch.device("meta"):
        numbers = sum(p.numel() for p in Decoder(second).parameters())
    stored_and_packed = 8 * numbers  # bytes, in float32
    return 2 * stored_and_packed <= plan.available - coming


def _sample(engine: Engine, prompts: Prompts, params: SamplingParams) -> list[Group]:
    """Responses to every prompt; request ids are positions, so that draws are those of the other
    model."""
    count = len(prompts.prompts)
    with CallBar(count * params.n, "responses") as bar:
        groups = engine.generate(
            prompts.prompts, params, request_ids=range(count), progress=bar.sampled
        )
    attach_columns(groups, prompts.columns, range(count))
    return groups


def _plain(params: SamplingParams) -> dict[str, Any]:
    """The parameters as JSON has them, which knows no -inf."""
    bias = {str(token): str(value) for token, value in params.logit_bias.items()}
    return dataclasses.asdict(params) | {"logit_bias": bias}
