"""A key for the endpoints of this folder's tests, and no proxy between."""

from __future__ import annotations

import pytest
from preferences.remote.scripted import KEY


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return KEY
