"""Patterns of module names mean what they mean to `peft`, or are refused."""

from __future__ import annotations

import pytest
from peft.utils.other import get_pattern_key

from pyengine.models.module_pattern import MAX_LENGTH, fits, is_pattern

MODULES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.11.mlp.up_proj",
    "transformer.h.1.attn.c_attn",
]
KEYS = {  # and how many of the modules each stands for
    "q_proj": 1,
    "proj": 0,
    "_proj": 0,
    "layers.1.self_attn.v_proj": 1,
    "layers.1": 0,
    "v.proj": 1,  # a point is any letter
    "layers.1.*": 2,  # 11 as well
    r"layers\.1\..*": 1,
    r"layers\.\d+\..*_proj": 3,
    "^q_proj": 0,
    "^model.layers.[01].*": 3,
    "^(model|transformer).*": 4,
    "(?:up|q)_proj$": 2,
    "(up_proj)|q_proj": 2,
    "q_?proj|": 1,
    "[q-v]_proj": 2,
    "": 0,
}


@pytest.mark.parametrize(("key", "count"), KEYS.items())
def test_as_peft_matches(key: str, count: int) -> None:
    ours = [module for module in MODULES if fits(key, module)]
    theirs = [module for module in MODULES if get_pattern_key([key], module) == key]
    assert ours == theirs
    assert len(ours) == count
    assert is_pattern(key) == bool(key)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b", "(.*)*", "((a|b)|c)", "(?=q)q_proj", r"(q)\1", "(?P<n>q)", "q{2}", "q**", "[z-a]",
        ".*.*.*.*.*", "(a|a)(b|b)(c|c)(d|d)(e|e)", "q(", "q)|(v", "[^q]_proj", "q-proj", "q proj",
        "q" * (MAX_LENGTH + 1), 3, None,
    ],
)  # fmt: skip
def test_refused(key: object) -> None:
    assert not is_pattern(key)
