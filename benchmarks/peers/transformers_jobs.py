"""The jobs as a user of transformers writes them: padded batches, one row a response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def load(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def generate(
    model: Any, prompts: Tensor, n: int, new_tokens: int, temperature: float = 1.0
) -> Tensor:
    """(B * n, new_tokens) ids for prompts (B, P); temperature 0 is greedy."""
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        num_return_sequences=n,
        pad_token_id=0,
        **sampling,
    )
    return ids[:, prompts.shape[1] :]


@torch.inference_mode()
def prefill(model: Any, prompts: Tensor) -> Tensor:
    """(B, V) logits of each prompt's last token; the cache is filled as generation needs it."""
    return model(prompts, use_cache=True, logits_to_keep=1).logits[:, -1]


def response_logits(model: Any, prompts: Tensor, responses: Tensor) -> Tensor:
    """(B, R, V) logits from which responses (B, R) are drawn; none for the prompt."""
    ids, R = torch.cat([prompts, responses], 1), responses.shape[1]
    return model(ids, use_cache=False, logits_to_keep=R + 1).logits[:, :-1]


def response_logps(model: Any, prompts: Tensor, responses: Tensor) -> Tensor:
    """(B, R) log-probs of responses (B, R) after prompts (B, P)."""
    logits = response_logits(model, prompts, responses)
    return torch.log_softmax(logits.float(), -1).gather(2, responses[:, :, None])[:, :, 0]


forward = torch.inference_mode()(response_logits)
score = torch.inference_mode()(response_logps)


class DpoSteps:
    """DPO in a page: policy and frozen reference over chosen and rejected rows, then AdamW."""

    def __init__(self, folder: Path, dtype: torch.dtype, pairs: Sequence[Tensor]) -> None:
        """pairs  prompts (C, P), chosen (C, R), rejected (C, R)"""
        self.policy, self.reference = (load(folder, torch.float32) for _ in range(2))
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6, weight_decay=0.0)
        self.prompts = torch.cat([pairs[0], pairs[0]])
        self.responses = torch.cat([pairs[1], pairs[2]])
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)

    def step(self, beta: float = 0.1) -> float:
        """The loss before this optimizer step."""
        with self.autocast:
            with torch.no_grad():
                ref = response_logps(self.reference, self.prompts, self.responses).sum(1)
            logps = response_logps(self.policy, self.prompts, self.responses).sum(1)
        chosen, rejected = (logps - ref).chunk(2)
        loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


@torch.inference_mode()
def label_logprobs(
    model: Any, prompts: Sequence[Sequence[int]], labels: Sequence[int], batch: int
) -> Tensor:
    """(N, labels) log-probs of single tokens after each of N prompts, in left-padded batches."""
    found = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        places = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(
            ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1
        )
        found.append(torch.log_softmax(out.logits[:, -1].float(), -1)[:, list(labels)])
    return torch.cat(found)
