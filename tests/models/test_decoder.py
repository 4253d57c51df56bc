"""The decoder against transformers: log-probs, gradients, bfloat16 and frozen copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import (
    CASES,
    causal,
    hf_model,
    our_logprobs,
    save_hf,
    their_logprobs,
    token_ids,
)
from torch import Tensor

from pyengine.errors import ConfigError, RequestError
from pyengine.models.decoder import Decoder
from pyengine.models.loader import build_decoder, hf_tensors, load_model


def make(case: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = hf_model(case)
    tensors = [item for item in model.state_dict().items() if item[0] != "lm_head.weight"]
    if not model.config.tie_word_embeddings:
        tensors.append(("lm_head.weight", model.lm_head.weight.detach()))
    return build_decoder(model.config.to_dict(), tensors, case, dtype)


@pytest.mark.parametrize("case", CASES)
def test_logprobs_equal_transformers(case: str, tmp_path: Path) -> None:
    theirs = save_hf(case, tmp_path)
    ours = load_model(tmp_path)
    with torch.no_grad():
        difference = our_logprobs(ours.decoder, token_ids()) - their_logprobs(theirs, token_ids())
    assert difference.abs().max() < 2e-5


@pytest.mark.parametrize(
    "case", ["llama", "llama-tied", "qwen3-bias-tied", "smollm3", "granite", "gpt2"]
)
def test_gradients_equal_transformers_autograd(case: str) -> None:
    theirs, ours, ids = hf_model(case), make(case), token_ids()
    weights = torch.randn(40, 97, generator=torch.Generator().manual_seed(3))
    (their_logprobs(theirs, ids) * weights).sum().backward()
    (our_logprobs(ours, ids) * weights).sum().backward()
    grads = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    ours_by_name = dict(hf_tensors(ours.spec, grads))
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert ours_by_name.keys() == expected.keys()
    for name, grad in ours_by_name.items():
        want = expected[name]
        assert want is not None
        assert torch.cosine_similarity(grad.flatten(), want.flatten(), dim=0) > 0.99999, name
        assert abs(grad.norm() / want.norm() - 1) < 1e-4, name


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "gpt2"])
def test_bfloat16_stays_near_float32(case: str) -> None:
    with torch.no_grad():
        exact = our_logprobs(make(case), token_ids())
        rounded = our_logprobs(make(case, torch.bfloat16), token_ids())
    # 8 bits of mantissa through two layers and a head whose logits reach about 10.
    assert 0 < (rounded - exact).abs().mean() < 0.05


def test_bfloat16_gradients_reach_the_fp32_masters() -> None:
    exact, rounded = make("llama-tied"), make("llama-tied", torch.bfloat16)
    for decoder in (exact, rounded):
        our_logprobs(decoder, token_ids())[:, 5].sum().backward()
    for (name, want), (_, got) in zip(
        exact.named_parameters(), rounded.named_parameters(), strict=True
    ):
        assert got.grad is not None
        assert got.grad.dtype == torch.float32
        assert torch.cosine_similarity(got.grad.flatten(), want.grad.flatten(), dim=0) > 0.99, name


def test_repeated_token_gradient_adds_up_in_float32() -> None:
    decoder = make("llama", torch.bfloat16)
    ids = torch.full((40,), 3)
    rows = decoder.embed(ids)
    rows.backward(torch.full_like(rows, 1.001))
    assert decoder.embed.weight.grad is not None
    # bf16 holds neither 1.001 nor 40.04.
    assert torch.allclose(decoder.embed.weight.grad[3], torch.tensor(40.04), rtol=1e-6)


def test_compute_weight_is_the_master_in_float32() -> None:
    decoder = make("llama")
    assert decoder.head_weight() is decoder.head.weight


def test_compute_weight_is_made_once_and_again_after_a_change() -> None:
    matrix = make("llama", torch.bfloat16).layers[0].attn.q
    with torch.no_grad():
        first = matrix.compute_weight()
        assert matrix.compute_weight() is first
        matrix.weight.mul_(3)
        assert torch.equal(matrix.compute_weight(), matrix.weight.to(torch.bfloat16))
        matrix.weight = torch.nn.Parameter(matrix.weight + 1)
        assert torch.equal(matrix.compute_weight(), matrix.weight.to(torch.bfloat16))


def test_compute_weight_follows_writes_by_foreign_kernels() -> None:
    matrix = make("llama", torch.bfloat16).layers[0].attn.q
    matrix.compute_weight()
    matrix.weight.detach().numpy()[:] = 7  # as a kernel writes: torch does not see it
    torch.autograd.graph.increment_version([matrix.weight])
    assert torch.equal(matrix.compute_weight(), torch.full_like(matrix.weight, 7).bfloat16())


def test_copy_made_in_inference_mode_can_be_trained_through() -> None:
    decoder = make("llama", torch.bfloat16)
    with torch.inference_mode():
        sampled = our_logprobs(decoder, token_ids())
    trained = our_logprobs(decoder, token_ids())
    trained.sum().backward()
    assert torch.equal(sampled, trained.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["llama-tied", "qwen3", "gpt2"])
def test_frozen_copy_has_the_same_bits_and_is_independent(case: str, dtype: torch.dtype) -> None:
    decoder = make(case, dtype)
    frozen = decoder.frozen_copy()
    before = our_logprobs(decoder, token_ids()).detach()
    assert torch.equal(our_logprobs(frozen, token_ids()), before)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1)
    assert torch.equal(our_logprobs(frozen, token_ids()), before)
    assert not torch.equal(our_logprobs(decoder, token_ids()), before)


def test_frozen_bfloat16_copy_stores_matrices_in_half_the_bytes() -> None:
    decoder = make("qwen3", torch.bfloat16)
    for name, parameter in decoder.frozen_copy().named_parameters():
        assert parameter.dtype == (torch.bfloat16 if parameter.ndim == 2 else torch.float32), name


def test_residual_and_hidden_dtypes() -> None:
    decoder = make("llama", torch.bfloat16)
    seen: dict[str, torch.dtype] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.update(q=q.dtype, k=k.dtype, v=v.dtype)
        return causal(decoder.spec)(layer, q, k, v)

    block = decoder.layers[0]
    block.register_forward_hook(lambda module, args, out: seen.update(residual=out.dtype))
    seen["hidden"] = decoder(token_ids(), torch.arange(40), attend).dtype
    half, full = torch.bfloat16, torch.float32
    assert seen == {"q": half, "k": half, "v": half, "residual": full, "hidden": half}


def test_empty_batch() -> None:
    none = torch.empty(0, dtype=torch.int64)
    hidden = make("llama")(none, none, lambda layer, q, k, v: q)
    assert hidden.shape == (0, 48)


@pytest.mark.parametrize(
    ("ids", "positions", "message"),
    [
        (torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int64), "token_ids must be"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.arange(3), "token_ids must be int64 of shape"),
        (torch.zeros(3, dtype=torch.int64), torch.arange(4), "positions must be int64 of shape"),
        (torch.zeros(1, dtype=torch.int64), torch.tensor([64]), r"in \[0, 64\) but one is 64"),
        (torch.zeros(1, dtype=torch.int64), torch.tensor([-1]), r"in \[0, 64\) but one is -1"),
    ],
)
def test_bad_inputs_are_refused(ids: Tensor, positions: Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make("llama")(ids, positions, lambda layer, q, k, v: q)


def test_other_compute_dtypes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be float32 or bfloat16 but is torch.float16"):
        make("llama", torch.float16)
