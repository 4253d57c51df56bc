"""Log-probs of given responses on the C++ session: each prompt once, then its responses' tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyengine.engine.batch.packing import Tree
from pyengine.engine.calls.sampling_params import SamplingParams
from pyengine.engine.infer.generation import STEP_SECONDS, settings_of
from pyengine.engine.infer.sampler import Sampler
from pyengine.errors import NonFiniteError, RequestError


@dataclass(frozen=True)
class Score:
    """A response's log-probs: token_logprobs (R,) float32 on the CPU, and their sum."""

    token_logprobs: Tensor
    logprob: float


# A score is a draw whose outcome is given, from the raw distribution.
_PLAIN = SamplingParams(max_tokens=1, ignore_eos=True)


def score_trees(
    sampler: Sampler,
    model: str,
    trees: Sequence[Tree],
    progress: Callable[[int, int], None] | None,
) -> list[list[Tensor]]:
    """(R,) float32 for each response of each tree, whose ids have been checked (check_tree).

    Raises RequestError for a group that can never fit, NonFiniteError where the weights give
    logits that are not finite.
    """
    longest = [_longest(tree) for tree in trees]
    if not trees:
        return []
    session = sampler.open({model: 1.0}, max(longest))
    for i, tokens in enumerate(longest):
        if why := session.refusal(tokens):
            raise RequestError(f"[score] groups[{i}] can never fit: its longest response and {why}")
    try:
        return _run(session, trees, progress)
    finally:
        session.clear()


def _longest(tree: Tree) -> int:
    return len(tree.prompt_ids) + max((len(r) for r in tree.responses), default=0)


def _run(
    session: Any, trees: Sequence[Tree], progress: Callable[[int, int], None] | None
) -> list[list[Tensor]]:
    session.collect_events(False)
    settings = settings_of(_PLAIN, frozenset(), 0, 0)
    handles: list[int | None] = []
    for tree in trees:
        given = [list(map(int, r)) for r in tree.responses]
        prompt = list(map(int, tree.prompt_ids))
        handles.append(session.submit(prompt, settings, len(given), given) if given else None)
    places = {handle: i for i, handle in enumerate(handles) if handle is not None}
    samples = [0]  # in the trees up to each
    for tree in trees:
        samples.append(samples[-1] + len(tree.responses))
    while True:
        worked, bad_request, bad_sample = session.step(1 << 30, STEP_SECONDS)
        if bad_request >= 0:
            raise NonFiniteError(
                "[score] logits must be finite but the weights give NaN or infinity for "
                f"groups[{places[bad_request]}].responses[{bad_sample}]"
            )
        if not worked:
            break
        if progress is not None:
            # Groups are computed in order: as many are done as the ended responses make up.
            ended = session.statistics()["finished"]
            progress(sum(n <= ended for n in samples[1:]), len(trees))
    if progress is not None:
        progress(len(trees), len(trees))
    return [
        [] if h is None else [torch.tensor(columns[1]) for columns in session.take(h)]
        for h in handles
    ]
