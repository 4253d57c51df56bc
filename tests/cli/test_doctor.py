from __future__ import annotations

import re

import torch

import pyengine
from pyengine import _C
from pyengine.cli import doctor
from pyengine.cli.main import main


def test_doctor_prints_every_fact(capsys):
    assert main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["pyengine"].startswith(pyengine.__version__)
    assert lines["torch"] == torch.__version__
    assert lines["threads"].startswith(f"{pyengine.get_num_threads()} of ")
    assert "isa" in lines
    assert "openmp" in lines
    assert "cuda" in lines
    assert "GiB available of" in lines["memory"]


def test_isa_is_the_one_in_use():
    facts = dict(doctor.facts())
    assert facts["isa"].split()[0] == _C.isa()
    assert facts["isa available"].split(", ") == _C.available_isas()


def test_one_openmp_runtime_is_mapped():
    assert len(doctor.openmp_runtimes()) == 1
    assert dict(doctor.facts())["openmp"] == doctor.openmp_runtimes()[0]


def test_several_runtimes_are_pointed_out(monkeypatch):
    monkeypatch.setattr(doctor, "openmp_runtimes", lambda: ["/a/libgomp.so.1", "/b/libiomp5.so"])
    assert dict(doctor.facts())["openmp"].endswith("several runtimes fight for the cores")


def test_dtype_advice_follows_the_cpu(monkeypatch):
    monkeypatch.setattr(doctor._C, "available_isas", lambda: ["baseline", "avx2"])
    assert dict(doctor.facts())["dtype advice"].startswith("float32:")
    monkeypatch.setattr(doctor._C, "available_isas", lambda: ["baseline", "avx512_bf16"])
    assert dict(doctor.facts())["dtype advice"].startswith("bfloat16:")


def test_doctor_plans_the_memory_of_a_model(capsys, tiny_model):
    assert main(["doctor", "--model", str(tiny_model), "--dtype", "float32"]) == 0
    lines = dict(line.split(maxsplit=2)[::2] for line in capsys.readouterr().out.splitlines()[-2:])
    assert "micro_batch_tokens" in lines["kv_tokens"]
    plan = lines["memory"].removeprefix("plan").strip()
    assert plan.startswith("weights ")
    assert " + KV cache " in plan
    assert "available" in plan


def test_doctor_says_what_8bit_moments_save(capsys, smollm2_gguf):
    """All but 61 norms of 576: 6 bytes a weight less the absmax of a block, 8 / 256."""
    assert main(["doctor", "--model", str(smollm2_gguf), "--dtype", "float32"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("optimizer "))
    saved = (134_515_008 - 61 * 576) * (6 - 8 / 256) / 2**20
    assert line.endswith(f"optimizer_bits=8 takes {saved:.0f} MiB less than the plan")


def test_doctor_plans_adapters_in_the_place_of_weights(capsys, tiny_model):
    """The reference is then the model without them, which takes nothing."""
    plans = []
    for options in ([], ["--lora", "2"]):
        assert main(["doctor", "--model", str(tiny_model), "--dtype", "float32", *options]) == 0
        plans.append(capsys.readouterr().out.splitlines()[-1])
    parts = [set(re.findall(r"\b(adapters|reference) \d", plan)) for plan in plans]
    assert parts == [{"reference"}, {"adapters"}]
