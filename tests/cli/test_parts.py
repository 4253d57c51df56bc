from __future__ import annotations

import pytest

from pyengine.cli.main import main


def test_all_kinds_are_listed(capsys):
    assert main(["parts"]) == 0
    shown = capsys.readouterr().out
    for line in ("loops:", "objectives:", "pairings:", "best_worst", "offline", "plackett_luce"):
        assert line in shown


def test_a_part_shows_its_fields_defaults_and_rules(capsys):
    assert main(["parts", "pairings", "all_pairs"]) == 0
    shown = capsys.readouterr().out
    assert "  min_margin: default 0.0, >= 0 and finite" in shown
    assert "  max_pairs: default None, an integer >= 1, or None" in shown
    assert main(["parts", "loops", "offline"]) == 0
    assert "  data: required" in capsys.readouterr().out
    assert main(["parts", "sources", "remote_scores"]) == 0
    shown = capsys.readouterr().out
    assert "  endpoint: required" in shown
    assert "\nendpoint: An OpenAI-compatible endpoint" in shown
    assert "  concurrency: default 16, an integer >= 1" in shown


@pytest.mark.parametrize(("words", "message"), [(["pairings", "best"], "top_half but is 'best'")])
def test_an_unknown_part_is_named(capsys, words, message):
    assert main(["parts", *words]) == 2
    assert message in capsys.readouterr().err
