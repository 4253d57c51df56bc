"""An engine without a model: deterministic samples, one weight, everything it was asked is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

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
    """Samples depend on (weight, seed, request id, sample index) only, as the real engine's do.

    calls  what was done in order: ("generate", models), ("snapshot", name), ("reference", name),
           ("load", name, moments), ("update", batch)
    """

    has_reference = True
    config = SimpleNamespace(lora=None)
    tokenizer = None
    max_positions = 64

    def __init__(self) -> None:
        self.weight = 0.0
        self.step_count = 0
        self.extra: dict = {}
        self.request_ids: list[int] = []
        self.updates: list = []
        self.calls: list[tuple] = []
        self.kept: dict[str, float] = {}
        self.reference_snapshot: str | None = None

    @classmethod
    def from_pretrained(cls, model, **settings):
        engine = cls()
        engine.settings = {"model": model, **settings}
        return engine

    def memory_plan(self, objective=None):
        return FakePlan()

    # Snapshots are weights by name.

    @property
    def snapshots(self):
        return list(self.kept)

    def weight_of(self, name):
        if name == "reference":
            return self.kept.get(self.reference_snapshot, 0.0)
        return self.weight if name == "policy" else self.kept[name]

    def mixed(self, models):
        return sum(share * self.weight_of(name) for name, share in models.items())

    def snapshot(self, name, overwrite=False):
        assert overwrite or name not in self.kept
        self.calls.append(("snapshot", name))
        self.kept[name] = self.weight

    def combine(self, models, name, overwrite=False):
        self.kept[name] = self.mixed(models)

    def average(self, names, name, overwrite=False):
        self.kept[name] = self.mixed(dict.fromkeys(names, 1 / len(names)))

    def drop_snapshot(self, name):
        assert name != self.reference_snapshot
        del self.kept[name]

    def load_snapshot(self, name, moments="keep"):
        self.calls.append(("load", name, moments))
        self.weight = self.kept[name]

    def set_reference(self, name):
        self.calls.append(("reference", name))
        assert name in self.kept
        self.reference_snapshot = name

    def generate(self, prompts, params, request_ids=None, *, models=None):
        ids = list(range(len(prompts))) if request_ids is None else request_ids
        each = params if isinstance(params, list) else [params] * len(prompts)
        self.request_ids += ids
        self.calls.append(("generate", models))
        weight = self.weight if models is None else self.mixed(models)
        return [
            Group([1, 2, 3], [self._sample(weight, own, i, k) for k in range(own.n)], prompt=p)
            for p, i, own in zip(prompts, ids, each, strict=True)
        ]

    def _sample(self, weight, params, request_id, k):
        key = f"{weight:.9f}/{params.seed}/{request_id}/{k}"
        digest = hashlib.sha256(key.encode()).digest()
        tokens = [b % len(VOCABULARY) for b in digest[: 1 + digest[0] % params.max_tokens]]
        finish = "length" if len(tokens) == params.max_tokens else "stop"
        logprobs = [-1.0 - weight - t / 8 for t in tokens]
        text = " ".join(VOCABULARY[t] for t in tokens)
        return Response(tokens, logprobs, logprobs, text, finish)

    def score(self, groups, model="policy", *, keep=True):
        weight = self.weight_of(model)
        return [
            [FakeScore([-1.0 - weight - t / 8 for t in r.token_ids]) for r in g.responses]
            for g in groups
        ]

    def gradient_norms(self, groups, *, per_token=True):
        self.calls.append(("gradient_norms", per_token))
        return [[1.0 + r.token_ids[0] for r in g.responses] for g in groups]

    def hidden_states(self, groups, model="policy", pool="last"):
        return [
            [torch.tensor([1.0, self.weight_of(model) + sum(r.token_ids)]) for r in g.responses]
            for g in groups
        ]

    def update(self, batch, objective):
        self.calls.append(("update", batch))
        self.updates.append(batch)
        self.step_count += 1
        rewards = batch.feedback.rewards
        gains = [
            rewards[c.group][c.winner] - rewards[c.group][c.loser] for c in batch.comparisons
        ] or [r for row in rewards for r in row if r is not None]
        self.weight += 0.01 * sum(gains) / len(gains)
        return {"loss": 0.5 / self.step_count, "lr": 0.1 * self.step_count, "grad_norm": 1.0}

    def save_checkpoint(self, path, extra=None):
        Path(path).mkdir(parents=True, exist_ok=True)
        state = {"weight": self.weight, "step_count": self.step_count, "extra": extra}
        state |= {"kept": self.kept, "reference_snapshot": self.reference_snapshot}
        (Path(path) / "state.json").write_text(json.dumps(state))

    @classmethod
    def load_checkpoint(cls, path, **options):
        state = json.loads((Path(path) / "state.json").read_text())
        engine = cls()
        engine.weight, engine.step_count = state["weight"], state["step_count"]
        engine.kept, engine.reference_snapshot = state["kept"], state["reference_snapshot"]
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
