"""Objectives by name, and the check messages of `get` and `pairwise_loss`."""

from __future__ import annotations

import pytest
import torch

from pyengine import objectives
from pyengine.errors import ConfigError
from pyengine.objectives import DPO

B = torch.zeros(3)


def test_get_passes_options_on():
    assert objectives.get("dpo", beta=0.25, label_smoothing=0.1) == DPO(0.25, 0.1)


def test_every_available_name_has_an_objective_of_that_name():
    assert objectives.available() == sorted(objectives.available())
    assert "dpo" in objectives.available()
    for name in objectives.available():
        assert objectives.get(name).name == name


def test_unknown_name_is_refused():
    with pytest.raises(ConfigError) as caught:
        objectives.get("iipo")
    assert str(caught.value).startswith("[objectives] name must be one of ")
    assert str(caught.value).endswith("but is 'iipo' (did you mean 'ipo'?)")


def test_unknown_option_is_refused():
    with pytest.raises(ConfigError) as caught:
        objectives.get("dpo", betta=0.1)
    assert (
        str(caught.value) == "[objectives] dpo has no option 'betta'; it has beta, label_smoothing"
    )


def test_pairwise_loss_refuses_an_unknown_option():
    with pytest.raises(ConfigError, match="dpo has no option 'gamma'"):
        objectives.pairwise_loss("dpo", B, B, B, B, gamma=1)


@pytest.mark.parametrize("missing", ["ref_chosen_logps", "ref_rejected_logps"])
def test_pairwise_loss_needs_the_reference(missing):
    given = {"ref_chosen_logps": B, "ref_rejected_logps": B} | {missing: None}
    with pytest.raises(ValueError) as caught:
        objectives.pairwise_loss("dpo", B, B, **given)
    assert str(caught.value) == f"[pairwise_loss] dpo needs {missing} but it is None"


@pytest.mark.parametrize("wrong", ["rejected_logps", "ref_chosen_logps", "ref_rejected_logps"])
def test_pairwise_loss_names_the_tensor_of_another_shape(wrong):
    given = dict.fromkeys(("rejected_logps", "ref_chosen_logps", "ref_rejected_logps"), B)
    given[wrong] = torch.zeros(2)
    with pytest.raises(ValueError) as caught:
        objectives.pairwise_loss("dpo", B, **given)
    assert (
        str(caught.value)
        == f"[pairwise_loss] {wrong} must have shape (3,) like chosen_logps but got (2,)"
    )


def test_a_loss_of_another_kind_is_refused():
    with pytest.raises(ConfigError) as caught:
        objectives.pairwise_loss("kto", B, B)
    assert str(caught.value) == "[pairwise_loss] kto is not a pairwise objective"
    with pytest.raises(ConfigError) as caught:
        objectives.pointwise_loss("dpo", B, B)
    assert str(caught.value) == "[pointwise_loss] dpo is not a pointwise objective"


def test_what_an_objective_needs_must_be_given():
    with pytest.raises(ValueError) as caught:
        objectives.pointwise_loss("kto", B, B)
    assert str(caught.value) == "[pointwise_loss] kto needs labels but it is None"
    with pytest.raises(ValueError) as caught:
        objectives.pairwise_loss("ipo", B, B, B, B)
    assert str(caught.value) == ("[objectives] chosen_lengths must be given to average over tokens")


def test_log_probs_must_be_one_number_a_sequence():
    with pytest.raises(ValueError) as caught:
        objectives.pairwise_loss("dpo", B[None], B[None], B[None], B[None])
    assert str(caught.value) == (
        "[pairwise_loss] log-probs must be floating point of shape (B,) "
        "but are torch.float32 of shape (1, 3)"
    )
