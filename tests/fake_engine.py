"""An engine without a model: deterministic samples, one weight, everything it was asked is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pyengine.preferences import Group, Response

VOCABULARY = ("good", "bad", "fine", "poor", "table", "rain", "happy", "sad")


@dataclass
class FakeScore:
    token_logprobs: list[float]

    @property
    def logprob(self) -> float:
        return sum(self.token_logprobs)


class FakePlan:
    """Takes nothing."""

    def __str__(self):
        return "nothing"

    def check_update(self):
        pass


class FakeEngine:
    """Samples depend on (weight, seed, request id, sample index) only, as the real engine's do."""

    has_reference = True
    snapshots: tuple = ()

    def __init__(self) -> None:
        self.weight = 0.0
        self.step_count = 0
        self.extra: dict = {}
        self.request_ids: list[int] = []
        self.updates: list = []

    @classmethod
    def from_pretrained(cls, model, **settings):
        engine = cls()
        engine.settings = {"model": model, **settings}
        return engine

    tokenizer = None

    def memory_plan(self, objective=None):
        return FakePlan()

    def generate(self, prompts, params, request_ids=None):
        ids = list(range(len(prompts))) if request_ids is None else request_ids
        self.request_ids += ids
        return [
            Group([1, 2, 3], [self._sample(params, i, k) for k in range(params.n)], prompt=p)
            for p, i in zip(prompts, ids, strict=True)
        ]

    def _sample(self, params, request_id, k):
        key = f"{self.weight:.9f}/{params.seed}/{request_id}/{k}"
        digest = hashlib.sha256(key.encode()).digest()
        tokens = [b % len(VOCABULARY) for b in digest[: 1 + digest[0] % params.max_tokens]]
        finish = "length" if len(tokens) == params.max_tokens else "stop"
        logprobs = [-1.0 - self.weight - t / 8 for t in tokens]
        text = " ".join(VOCABULARY[t] for t in tokens)
        return Response(tokens, logprobs, logprobs, text, finish)

    def score(self, groups, model="policy"):
        weight = self.weight if model == "policy" else 0.0
        return [
            [FakeScore([-1.0 - weight - t / 8 for t in r.token_ids]) for r in g.responses]
            for g in groups
        ]

    def update(self, batch, objective):
        self.updates.append(batch)
        self.step_count += 1
        rewards = batch.feedback.rewards
        margins = [
            rewards[c.group][c.winner] - rewards[c.group][c.loser] for c in batch.comparisons
        ]
        self.weight += 0.01 * sum(margins) / len(margins)
        return {"loss": 0.5 / self.step_count, "lr": 0.1 * self.step_count, "grad_norm": 1.0}

    def save_checkpoint(self, path, extra=None):
        Path(path).mkdir(parents=True, exist_ok=True)
        state = {"weight": self.weight, "step_count": self.step_count, "extra": extra}
        (Path(path) / "state.json").write_text(json.dumps(state))

    @classmethod
    def load_checkpoint(cls, path, **options):
        state = json.loads((Path(path) / "state.json").read_text())
        engine = cls()
        engine.weight, engine.step_count = state["weight"], state["step_count"]
        engine.extra = state["extra"]
        return engine

    def save_pretrained(self, path):
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "weight.json").write_text(json.dumps(self.weight))


class FakeTokenizer:
    """A token a character; messages are their contents one after the other."""

    def encode_prompt(self, prompt):
        text = prompt if isinstance(prompt, str) else "".join(m["content"] for m in prompt)
        return [ord(c) for c in text]


class FakeText:
    """What ModelText says of the fake's text."""

    tokenizer = FakeTokenizer()
    max_positions = 64

    @classmethod
    def of(cls, model, date):
        return cls()
