"""What is free: the host, every control group around the process, and other engines."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

import pyengine as pe
from pyengine.engine import memory, memory_budget
from pyengine.engine.memory_budget import Budget, Ledger, budget, host_free_bytes
from pyengine.errors import ConfigError
from pyengine.models.loader import read_spec

CPU = torch.device("cpu")
GIB = 1 << 30
MIB = 1 << 20
V1 = "31 23 0:35 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


def machine(root: Path, cgroup: str = "", mounts: str = "", **files: str) -> Path:
    """A file system with /proc and control groups; `files` by path."""
    given = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {16 * GIB // 1024} kB\n"}
    given |= {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts} | files
    for name, text in given.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(place: str, v2: bool, limit: object, use: int, inactive: int = 0) -> dict[str, str]:
    limit_name, use_name, inactive_name = memory_budget._V2 if v2 else memory_budget._V1
    return {
        f"{place}/{limit_name}": f"{limit}\n",
        f"{place}/{use_name}": f"{use}\n",
        f"{place}/memory.stat": f"anon 7\n{inactive_name} {inactive}\nslab 1\n",
    }


def test_without_control_groups_it_is_what_the_kernel_says(tmp_path):
    assert host_free_bytes(machine(tmp_path)) == (16 * GIB, "MemAvailable of the host")


@pytest.mark.parametrize("text", [None, "MemTotal: 9 kB\n"])
def test_a_kernel_that_does_not_say_is_an_error(tmp_path, text):
    if text is not None:
        machine(tmp_path, **{"proc/meminfo": text})
    with pytest.raises(ConfigError) as caught:
        host_free_bytes(tmp_path)
    assert str(caught.value) == (
        "[memory] /proc/meminfo has no MemAvailable: pass kv_tokens, micro_batch_tokens and "
        "gradient_checkpointing"
    )


def test_a_v2_limit_less_what_is_in_use(tmp_path):
    """2 GiB - (700 MiB - 200 MiB of file pages that are dropped when memory is asked for)."""
    files = group("sys/fs/cgroup/app", True, 2 * GIB, 700 * MIB, 200 * MIB)
    root = machine(tmp_path, "0::/app\n", V2, **files)
    assert host_free_bytes(root) == (
        2 * GIB - 500 * MIB,
        "2.0 GiB of /sys/fs/cgroup/app/memory.max less 500 MiB in use",
    )


def test_the_tightest_of_all_groups_around_decides(tmp_path):
    """A group without a limit inside one of 8 GiB, of which all but 1 GiB are in use."""
    files = group("sys/fs/cgroup/pod/app", True, "max", 3 * GIB)
    files |= group("sys/fs/cgroup/pod", True, 8 * GIB, 7 * GIB)
    root = machine(tmp_path, "0::/pod/app\n", V2, **files)
    assert host_free_bytes(root)[0] == GIB


def test_a_v1_limit_less_what_is_in_use(tmp_path):
    files = group("sys/fs/cgroup/memory/a/b", False, 9223372036854771712, GIB)
    files |= group("sys/fs/cgroup/memory/a", False, 3 * GIB, 2 * GIB, GIB // 2)
    lines = "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n"
    root = machine(tmp_path, lines, V1 + V2.replace("/sys/fs/cgroup ", "/u "), **files)
    assert host_free_bytes(root)[0] == 3 * GIB - 3 * GIB // 2


@pytest.mark.parametrize("own", ["/docker/abc", "/elsewhere", "/../../outside"])
def test_a_container_sees_its_own_group_where_the_mount_is(tmp_path, own):
    """Docker mounts the group itself, while /proc may name its path on the host, or one outside."""
    mount = V2.replace("/ /sys/fs/cgroup", "/docker/abc /mnt/my\\040groups")
    files = group("mnt/my groups", True, 2 * GIB, GIB)
    root = machine(tmp_path, f"0::{own}\n", mount, **files)
    assert host_free_bytes(root)[0] == GIB


def test_more_in_use_than_the_limit_leaves_nothing(tmp_path):
    files = group("sys/fs/cgroup", True, GIB, 2 * GIB)
    assert host_free_bytes(machine(tmp_path, "0::/\n", V2, **files))[0] == 0


# Several engines


class Owner:
    def __init__(self, planned: int) -> None:
        self.planned = planned


def test_the_ledger_gives_back_what_deleted_owners_had():
    ledger = Ledger()
    one, other = Owner(100), Owner(20)
    for owner in (one, other):
        ledger.enter(owner, lambda o: o.planned)
    assert ledger.promised() == 120
    assert ledger.promised(besides=one) == 20
    one.planned = 3  # the rest is in memory now
    assert ledger.promised() == 23
    del one, owner
    assert ledger.promised() == 20


@pytest.fixture
def small_machine(tmp_path, monkeypatch) -> None:
    """64 MiB for this process, and no other engine."""
    files = group("sys/fs/cgroup", True, GIB, GIB - 64 * MIB)
    monkeypatch.setattr(memory_budget, "ROOT", machine(tmp_path, "0::/\n", V2, **files))
    monkeypatch.setattr(memory_budget, "LEDGER", ledger := Ledger())
    monkeypatch.setattr("pyengine.engine.footprint.LEDGER", ledger)


def test_engines_of_a_process_share_one_budget(make_engine, small_machine):
    assert budget(CPU).free == 64 * MIB
    first = make_engine()
    planned = first.memory_plan()
    assert 16 * MIB < planned.untouched <= 64 * MIB
    assert planned.budget.free == 64 * MIB  # its own is not taken off
    second = make_engine()
    assert second.memory_plan().budget.free == 64 * MIB - first.memory_plan().untouched
    assert first.memory_plan().untouched + second.memory_plan().untouched <= 64 * MIB
    third = make_engine()
    assert third.micro_batch_tokens < first.micro_batch_tokens
    assert third.memory_plan().budget.promised > second.memory_plan().untouched
    del third
    del first
    gc.collect()
    assert second.memory_plan().budget.free == 64 * MIB


def test_reward_models_are_in_it(make_engine, small_machine, tiny_model):
    model = pe.RewardModel.from_pretrained(tiny_model, dtype="float32")
    planned = 64 * MIB - budget(CPU).free
    assert planned == model._footprint.untouched_bytes() > MIB
    assert make_engine().memory_plan().budget.promised == planned


# A container of 2 GiB


def container(tmp_path: Path, monkeypatch, used: int) -> None:
    files = group("sys/fs/cgroup/app", True, 2 * GIB, used)
    monkeypatch.setattr(memory_budget, "ROOT", machine(tmp_path, "0::/app\n", V2, **files))
    monkeypatch.setattr(memory_budget, "LEDGER", Ledger())


FITS = {
    "int8": ("int8", "copy", 32, None),
    "8-bit moments": ("bfloat16", "none", 8, None),
    "adapters": ("bfloat16", "shared", 32, pe.LoraConfig(r=16)),
}
DOES_NOT = {"float32": ("float32", "copy", 32, None), "bfloat16": ("bfloat16", "copy", 32, None)}


@pytest.mark.parametrize("name", FITS)
def test_the_plan_of_smollm2_fits_a_container(tmp_path, monkeypatch, smollm2_gguf, name):
    """2 GiB with 150 MiB of Python and torch in it, before and after the weights are there."""
    dtype, reference, bits, lora = FITS[name]
    use = memory.MemoryUse(
        read_spec(smollm2_gguf), dtype, CPU, reference, pe.optim.AdamW(bits=bits), lora
    )
    loaded = sum(size for n, size in memory._parts(use, 0, 0) if n in use.loaded)
    container(tmp_path, monkeypatch, 150 * MIB + loaded)
    sizes = memory.planned_sizes("Engine", use, None, None, None)
    assert sizes.kv_tokens >= memory.LEAST_KV_TOKENS
    plan = memory.memory_plan(use, sizes, budget(CPU), held={})
    assert plan.refusal(learns=dtype != "int8") is None
    assert plan.total + 150 * MIB <= 2 * GIB


@pytest.mark.parametrize("name", DOES_NOT)
def test_or_it_is_refused_with_the_arithmetic(tmp_path, monkeypatch, smollm2_gguf, name):
    """The sum in one sentence: in float32 when the engine is made, in bfloat16 for updates."""
    dtype, reference, bits, lora = DOES_NOT[name]
    use = memory.MemoryUse(
        read_spec(smollm2_gguf), dtype, CPU, reference, pe.optim.AdamW(bits=bits), lora
    )
    loaded = sum(size for n, size in memory._parts(use, 0, 0) if n in use.loaded)
    container(tmp_path, monkeypatch, 150 * MIB + loaded)
    if name == "float32":
        with pytest.raises(ConfigError) as caught:
            memory.planned_sizes("Engine", use, None, None, None)
        assert str(caught.value) == (
            "[Engine] memory must hold packed 1.0 GiB + KV cache 0 MiB = 1.0 GiB more but there "
            "are 818 MiB available (2.0 GiB of /sys/fs/cgroup/app/memory.max less 1.2 GiB in use)"
            ": a smaller kv_tokens, reference='none' or dtype='int8' takes less"
        )
        return
    sizes = memory.planned_sizes("Engine", use, None, None, None)
    why = memory.memory_plan(use, sizes, budget(CPU), held={}).refusal(learns=True)
    assert why is not None
    assert " + gradients 513 MiB + optimizer 1.0 GiB + " in why
    assert "(2.0 GiB of /sys/fs/cgroup/app/memory.max less " in why


def test_where_memory_is_unknown_what_was_asked_for_is_taken(tmp_path, monkeypatch, engine):
    monkeypatch.setattr(memory_budget, "ROOT", tmp_path)
    use = engine._footprint.use()
    assert memory.planned_sizes("Engine", use, 64, 32, False) == memory.Sizes(64, 32, False)
    with pytest.raises(ConfigError, match="pass kv_tokens"):
        memory.planned_sizes("Engine", use, 64, None, False)


def test_a_budget_says_where_it_comes_from():
    assert str(Budget(5 * MIB, "MemAvailable of the host", 3 * MIB)) == (
        "5 MiB available (MemAvailable of the host, less 3 MiB planned by other engines)"
    )
