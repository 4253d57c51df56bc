"""linear_logprob against its float64 reference, and its promises: range, chains, bits, memory."""

from __future__ import annotations

import threading
import time
from typing import Literal

import pytest
import torch
from fresh_python import printed
from linear_logprob_cases import BF16, F32, NAMES, expected, forward, make, run
from reference.linear_logprob import linear_logprob as reference
from tolerances import FINITE_DIFFERENCE_RTOL, check_budget
from torch import Tensor

import pyengine as pe
from pyengine import _C

SIZES = (0, 1, 31, 32, 33, 111, 4099)
DTYPES = [(h, w) for h in (F32, BF16) for w in (F32, BF16)]


def check(T: int, D: int, V: int, dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32)) -> None:
    results = run(*make(T, D, V, dtypes))
    assert bool((results[0] <= 0.0).all())
    for name, got, exact, plain, dtype in zip(
        ("logprob", "dhidden", "dweight"),
        results,
        *expected(T, D, V, dtypes),
        (F32, *dtypes),
        strict=True,
    ):
        assert got.dtype == dtype
        check_budget(got, plain.to(dtype), exact, name)


@pytest.mark.parametrize("T", SIZES)
def test_tokens(T: int, isa: str) -> None:
    check(T, 33, 257)


@pytest.mark.parametrize("D", SIZES[1:])
def test_hidden_size(D: int, isa: str) -> None:
    check(33, D, 257)


@pytest.mark.parametrize("V", [1, 31, 256, 257, 512, 4099, 49152, 50257])
def test_vocabulary(V: int, isa: str) -> None:
    check(5, 32, V)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(NAMES[t] for t in d))
@pytest.mark.parametrize("D", [64, 111])
def test_dtypes(D: int, dtypes: tuple[torch.dtype, torch.dtype], isa: str) -> None:
    check(50, D, 600, dtypes)


def test_value_by_hand() -> None:
    """logits (0, log 3): probabilities 1/4 and 3/4."""
    hidden = torch.ones(2, 1)
    weight = torch.tensor([[0.0], [3.0]]).log1p() * torch.tensor([[0.0], [1.0]])
    weight[1, 0] = torch.tensor(3.0).log()
    logprob, dhidden, dweight = run(hidden, weight, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(logprob, torch.tensor([0.25, 0.75]).log())
    # d logp / d z = onehot - p: (3/4, -3/4) for target 0; (-1/4, 1/4) for target 1, doubled
    torch.testing.assert_close(dweight, torch.tensor([[0.75 - 0.5], [-0.75 + 0.5]]))
    log3 = float(torch.tensor(3.0).log())
    torch.testing.assert_close(dhidden, torch.tensor([[-0.75 * log3], [0.5 * log3]]))


def test_one_word_vocabulary_is_certain(isa: str) -> None:
    logprob, dhidden, dweight = run(*make(33, 31, 1))
    assert torch.equal(logprob, torch.zeros(33))
    assert float(dhidden.abs().max()) == 0.0
    assert float(dweight.abs().max()) == 0.0


def test_huge_logits(isa: str) -> None:
    """Logits up to 1e30 in size: no overflow, and the right word takes it all."""
    hidden, weight, targets, _ = make(64, 16, 300)
    for scale in (1e3, 1e10, 1e30):
        logprob, _ = forward(hidden * scale, weight, targets)
        exact = reference((hidden * scale).double(), weight.double(), targets)
        plain = reference(hidden * scale, weight, targets)
        check_budget(logprob, plain, exact)
        best = (hidden.double() @ weight.double().T).argmax(-1)
        assert torch.equal(forward(hidden * scale, weight, best)[0], torch.zeros(64))


def test_words_with_logit_minus_infinity(isa: str) -> None:
    """Such words have probability 0, and as targets log-probability -inf."""
    hidden, weight, targets, _ = make(40, 16, 600)
    hidden = hidden.abs() + 0.1
    weight = weight.clone()
    banned = torch.cat(
        [torch.arange(0, 256), torch.tensor([300, 599])]
    )  # the first block of words entirely
    weight[banned] = -float("inf")
    logprob, lse = forward(hidden, weight, targets)
    exact = reference(hidden.double(), weight.double(), targets)
    check_budget(logprob, reference(hidden, weight, targets), exact)
    is_banned = torch.isin(targets, banned)
    assert 0 < int(is_banned.sum()) < 40
    assert torch.equal(logprob == -float("inf"), is_banned)
    assert bool(lse.isfinite().all())


def test_nan_and_infinity_spoil_their_own_row_only(isa: str) -> None:
    hidden, weight, targets, _ = make(40, 16, 600)
    clean, _ = forward(hidden, weight, targets)
    broken = hidden.clone()
    broken[3, 2] = float("nan")
    broken[17, 0] = float("inf")  # logits of both signs infinite: inf - inf
    logprob, _ = forward(broken, weight, targets)
    assert torch.equal(logprob.isnan().nonzero()[:, 0], torch.tensor([3, 17]))
    rows = [t for t in range(40) if t not in (3, 17)]
    assert torch.equal(logprob[rows], clean[rows])


def test_never_positive(isa: str) -> None:
    """Near-certain words are where a rounding error would show as a positive log-probability."""
    rng = torch.Generator().manual_seed(0)
    D, V, T = 24, 700, 2000
    weight = torch.randn(V, D, generator=rng)
    targets = torch.randint(0, V, (T,), generator=rng)
    sharpness = torch.logspace(-2, 3, T)[:, None]
    hidden = weight[targets] * sharpness
    for h, w in ((hidden, weight), (hidden.bfloat16(), weight.bfloat16()), (hidden + 0.01, weight)):
        logprob, lse = forward(h, w, targets)
        assert float(logprob.max()) <= 0.0
        assert float(logprob[-1]) == 0.0
        assert bool(lse.isfinite().all())
        best = (h.float() @ w.float().T).argmax(-1)
        assert float(forward(h, w, best)[0].max()) <= 0.0


def test_finite_differences() -> None:
    """d loss along a random direction, from the float64 reference, equals our gradient along it."""
    hidden, weight, targets, dlogprob = make(9, 33, 301)
    _, dhidden, dweight = run(hidden, weight, targets, dlogprob)
    rng = torch.Generator().manual_seed(1)
    step = 1e-6
    for name, grad, which in (("dhidden", dhidden, 0), ("dweight", dweight, 1)):
        for _ in range(8):
            u = torch.randn(grad.shape, generator=rng, dtype=torch.float64)

            def loss(h: float, u: Tensor = u, which: int = which) -> Tensor:
                moved = [hidden.double(), weight.double()]
                moved[which] = moved[which] + h * u
                return (reference(*moved, targets) * dlogprob.double()).sum()

            slope = float(loss(step) - loss(-step)) / (2 * step)
            scale = float((grad.double() * u).abs().sum())
            assert (
                abs(float((grad.double() * u).sum()) - slope) <= FINITE_DIFFERENCE_RTOL * scale
            ), name


def test_gradient_of_a_sum_over_words_is_zero() -> None:
    """sum_v softmax_v = 1, so d/d logits sums to 0; with all hidden rows 1, so does dweight."""
    hidden = torch.ones(8, 16)
    _, weight, _, _ = make(8, 16, 300)
    targets = torch.arange(8)
    _, _, dweight = run(hidden, weight, targets, torch.ones(8))
    assert float(dweight.double().sum(0).abs().max()) < 1e-5


LAYOUTS = {
    "strided rows": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "padded rows": lambda x: torch.nn.functional.pad(x, (3, 10))[:, 3:-10],
}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_strides_give_the_same_bits(layout: str, dtype: torch.dtype) -> None:
    hidden, weight, targets, dlogprob = make(50, 47, 600, (dtype, dtype))
    want = run(hidden, weight, targets, dlogprob)
    strided, strided_weight = LAYOUTS[layout](hidden), LAYOUTS[layout](weight)
    assert strided.stride() != hidden.stride()
    got = run(strided, strided_weight, targets, dlogprob)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_gradient_that_is_broadcast() -> None:
    """logprob.sum() sends back a gradient of stride 0."""
    hidden, weight, targets, _ = make(50, 33, 257)
    leaf = hidden.detach().requires_grad_()
    pe.ops.linear_logprob(leaf, weight, targets).sum().backward()
    assert torch.equal(leaf.grad, run(hidden, weight, targets, torch.ones(50))[1])


def test_frozen_head_and_frozen_hidden() -> None:
    hidden, weight, targets, dlogprob = make(50, 33, 257)
    _, dhidden, dweight = run(hidden, weight, targets, dlogprob)
    leaf, parameter = hidden.detach().requires_grad_(), torch.nn.Parameter(weight.detach().clone())
    pe.ops.linear_logprob(leaf, weight, targets).backward(dlogprob)
    assert weight.grad is None
    assert torch.equal(leaf.grad, dhidden)
    pe.ops.linear_logprob(hidden, parameter, targets).backward(dlogprob)
    assert hidden.grad is None
    assert torch.equal(parameter.grad, dweight)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_a_row_does_not_know_its_batch(dtype: torch.dtype, isa: str) -> None:
    hidden, weight, targets, dlogprob = make(1100, 24, 600, (dtype, dtype))
    logprob, dhidden, _ = run(hidden, weight, targets, dlogprob)
    for rows in (slice(0, 1), slice(47, 48), slice(1023, 1024), slice(1099, 1100), slice(3, 52)):
        alone = run(hidden[rows], weight, targets[rows], dlogprob[rows])
        assert torch.equal(alone[0], logprob[rows])
        assert torch.equal(alone[1], dhidden[rows])
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(2))
    assert torch.equal(forward(hidden[order], weight, targets[order])[0], logprob[order])


def test_repeat_is_bitwise(isa: str) -> None:
    inputs = make(111, 33, 600, (BF16, F32))
    first = run(*inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), first, strict=True))


@pytest.mark.parametrize("shape", [(111, 33, 600), (1, 64, 4099), (1100, 16, 257)])
def test_threads_change_nothing(shape: tuple[int, int, int], restore_threads: None) -> None:
    inputs = make(*shape)
    pe.set_num_threads(1)
    one = run(*inputs)
    for n in (2, 3):
        pe.set_num_threads(n)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs), one, strict=True)), n


def test_instruction_sets_with_fma_agree_bitwise(restore_isa: None) -> None:
    inputs = make(33, 111, 600, (BF16, BF16))
    results = {}
    for name in _C.available_isas():
        if name != "baseline":
            _C.set_isa(name)
            results[name] = run(*inputs)
    if len(results) < 2:
        pytest.skip("needs two instruction sets with FMA")
    first, *others = results.values()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_workspace_for_more_threads_is_cut_to_fit(restore_threads: None) -> None:
    """set_num_threads between sizing the workspace and the call must not write past its end."""
    hidden, weight, targets, _ = make(50, 33, 2000)
    want = forward(hidden, weight, targets)
    pe.set_num_threads(1)
    small = torch.empty(_C.linear_logprob_workspace_bytes(50, 33, 2000, "forward") // 4)
    pe.set_num_threads(8)
    guard = torch.full((small.numel() + 4096,), 7.0)
    logprob, lse = torch.empty(50), torch.empty(50)
    workspace = guard[: small.numel()]
    _C.linear_logprob_forward(hidden, weight, targets, logprob, lse, workspace)
    assert torch.equal(logprob, want[0])
    assert torch.equal(lse, want[1])
    assert bool((guard[small.numel() :] == 7.0).all())


def test_both_ways_of_reading_a_tensor(reading: str) -> None:
    check(9, 33, 257, (BF16, BF16))


def test_refusal_comes_before_any_work() -> None:
    hidden, weight, targets, _ = make(9, 33, 257)
    bad = targets.clone()
    bad[8] = 257
    logprob, lse = torch.full((9,), 7.0), torch.full((9,), 7.0)
    workspace = torch.empty(_C.linear_logprob_workspace_bytes(9, 33, 257, "forward") // 4)
    with pytest.raises(ValueError, match=r"targets\[8\] = 257"):
        _C.linear_logprob_forward(hidden, weight, bad, logprob, lse, workspace)
    assert torch.equal(logprob, torch.full((9,), 7.0))
    assert torch.equal(lse, logprob)


MEMORY_SCRIPT = """
import torch
import pyengine as pe

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024

T, D, V = 2048, 32, 49152
for dtype in (torch.bfloat16, torch.float32):
    hidden = torch.randn(T, D).to(dtype).requires_grad_()
    weight = torch.randn(V, D).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (T,))
    pe.ops.linear_logprob(hidden[:8], weight, targets[:8]).sum().backward()
    before = status("VmRSS")
    pe.ops.linear_logprob(hidden, weight, targets).sum().backward()
    print(status("VmHWM") - before)
"""


def test_memory_stays_far_below_a_logits_matrix() -> None:
    """Peak of forward and backward at T = 2048, V = 49152; float32 logits alone take 384 MiB."""
    for extra_mib in printed(MEMORY_SCRIPT).split():
        assert 0.0 < float(extra_mib) < 96.0


def test_releases_the_gil() -> None:
    """Another Python thread goes on while a kernel runs."""
    hidden, weight = torch.randn(512, 256), torch.randn(20000, 256)
    targets = torch.zeros(512, dtype=torch.int64)
    stamps: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    forward(hidden, weight, targets)
    end = time.perf_counter()
    stop.set()
    thread.join()
    quarter = (end - start) / 4
    assert any(start + quarter < stamp < end - quarter for stamp in stamps)


def test_opcheck() -> None:
    hidden, weight, targets, dlogprob = make(5, 16, 40)
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    args: tuple[object, ...] = (hidden, weight, targets, 1.0, True)
    torch.library.opcheck(torch.ops.pyengine.linear_logprob.default, args)
    lse = forward(hidden.detach(), weight.detach(), targets)[1]
    args = (dlogprob, hidden.detach(), weight.detach(), targets, lse, hidden.new_empty(0), 1.0)
    torch.library.opcheck(torch.ops.pyengine.linear_logprob_backward.default, args)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
def test_compiled_equals_eager(dtype: torch.dtype) -> None:
    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return pe.ops.linear_logprob(hidden * 2.0, weight, targets) * 3.0

    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    hidden, weight, targets, dlogprob = make(9, 33, 257, (dtype, dtype))
    results = []
    for f in (head, compiled):
        h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        y = f(h, w, targets)
        results.append((y.detach(), *torch.autograd.grad(y, (h, w), dlogprob)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=NAMES.get)
@pytest.mark.parametrize("D", [1, 64, 111, 576])
def test_logits_are_those_of_linear(D: int, dtype: torch.dtype, isa: str) -> None:
    """Where the other logit is larger by over 104, lse is that logit, so logprob = z[1] - z[0]."""
    kind: Literal["float32", "bfloat16"] = "float32" if dtype == F32 else "bfloat16"
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        hidden = torch.randn(1, D, generator=rng).to(dtype)
        weight = torch.randn(2, D, generator=rng).to(dtype)
        weight[0] = 200 * hidden[0] / hidden[0].float().norm() ** 2
        z = pe.ops.linear(hidden, pe.ops.linear_pack(weight, kind), out_dtype=F32)
        assert isinstance(z, Tensor)
        assert float(z[0, 0] - z[0, 1]) > 104
        logprob = pe.ops.linear_logprob(hidden, weight, torch.tensor([1]))
        assert torch.equal(logprob, z[:, 1] - z[:, 0])
