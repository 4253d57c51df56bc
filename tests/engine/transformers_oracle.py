"""transformers beside an engine: logits of a response, and its processors in pyengine's order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import pyengine as pe

# Two float32 forward passes of the tiny model that add up in different orders, as log-probs; a
# small temperature magnifies the difference.
LOGPROB_ATOL = 2e-5


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def response_logits(model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """(R, V): row i predicts ids[i]."""
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0]
    return logits[len(prompt) - 1 : -1]


def processed(
    logits: Tensor,
    params: pe.SamplingParams,
    prompt: list[int],
    ids: list[int],
    end_ids: Sequence[int],
) -> Tensor:
    """(V,) logits that the token after prompt + ids is drawn from, before the temperature."""
    seen, scores = torch.tensor([prompt + ids]), logits[None].clone()
    if params.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(seen, scores)
    # As vLLM defines them: of the response alone, presence once and frequency each time.
    for token, count in Counter(ids).items():
        scores[0, token] -= params.presence_penalty + params.frequency_penalty * count
    if params.logit_bias:
        bias = {(token,): value for token, value in params.logit_bias.items()}
        scores = SequenceBiasLogitsProcessor(bias)(seen, scores)
    if params.min_tokens and end_ids:
        least = MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, list(end_ids))
        scores = least(seen, scores)
    return scores[0]


def warped(scores: Tensor, params: pe.SamplingParams) -> Tensor:
    """(V,) after temperature, top_k, top_p and min_p, -inf outside the kept set."""
    warpers: list[LogitsProcessor] = []
    if params.temperature != 1:
        warpers.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    out = scores[None]
    for warper in warpers:
        out = warper(torch.zeros(1, 0, dtype=torch.long), out)
    return out[0]
