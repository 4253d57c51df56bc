"""Flags of sampling that several commands share, and the parameters they become."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection

from pyengine.engine import SamplingParams
from pyengine.errors import ConfigError

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SamplingParams)}
_HELP = {
    "n": "responses a prompt",
    "temperature": "0 is greedy",
    "top_k": "sample among the k likeliest tokens; 0: all",
    "top_p": "sample among the likeliest tokens that hold this probability",
    "min_p": "drop tokens less likely than this share of the likeliest",
    "max_tokens": "longest response in tokens",
    "min_tokens": "shortest response in tokens",
    "seed": "of the draws",
    "repetition_penalty": "divides positive logits of tokens in the prompt or response, multiplies "
    "negative ones",
    "presence_penalty": "off the logits of tokens in the response",
    "frequency_penalty": "off the logits of tokens in the response, once an occurrence",
    "top_logprobs": "with --json: so many most likely tokens of every position",
}


def add_sampling(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Flags of SamplingParams' fields; `without` those that the command has no use for."""
    for name, text in _HELP.items():
        if name in without:
            continue
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
        "--logit-bias",
        action="append",
        default=[],
        type=_bias,
        metavar="ID=VALUE",
        help="added to the logit of the token with this id; -inf: never drawn; repeatable",
    )


def sampling_params(args: argparse.Namespace, who: str) -> SamplingParams:
    """What the flags say. Raises ConfigError, naming the command `who` where it is the flags'."""
    bias: dict[int, float] = {}
    for token, value in args.logit_bias:
        if token in bias:
            raise ConfigError(
                f"[{who}] --logit-bias must name a token once but names {token} twice"
            )
        bias[token] = value
    given = {name: getattr(args, name) for name in _HELP if hasattr(args, name)}
    return SamplingParams(stop=tuple(args.stop), logit_bias=bias, **given)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be ID=VALUE but is {text!r}") from None
