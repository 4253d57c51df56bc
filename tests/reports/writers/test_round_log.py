"""Loggers beside metrics.jsonl: each round once, whatever happens to the run."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from pyengine.errors import CheckpointError, ConfigError, MissingDependencyError
from pyengine.reports.writers.available import WRITERS
from pyengine.reports.writers.round_log import RoundLog
from pyengine.reports.writers.writer import numbers_of

ROWS = [{"round": r, "loss": r / 2, "objective/kl": None, "epoch": 1} for r in range(4)]


class FakeService:
    """What is called of all three libraries; `written` is what they were given, in order."""

    def __init__(self):
        self.begun, self.written, self.closed = [], [], 0

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, numbers, step):
        self.written.append((step, numbers["loss"]))

    def finish(self):
        self.closed += 1

    def add_scalar(self, name, value, step):
        if name == "loss":
            self.written.append((step, value))

    def flush(self):
        pass

    close = finish


@pytest.fixture
def service(monkeypatch):
    service = FakeService()
    fake = SimpleNamespace(
        init=service.init,
        Settings=lambda **options: options,
        SummaryWriter=lambda log_dir: service.init(log_dir=log_dir),
    )
    for module in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, fake)
    return service


def log_of(folder, *names, say=print):
    log = RoundLog([{"name": name} for name in names], say)
    log.begin(folder, "my run", {"loop": "online"})
    return log


@pytest.mark.parametrize("name", WRITERS.names())
def test_each_round_is_written_once_also_after_a_resume(tmp_path, service, name):
    log = log_of(tmp_path / "log", name)
    for row in ROWS[:3]:
        log.write(row)
    log.close()
    again = log_of(tmp_path / "log", name)
    for row in ROWS[1:]:  # the newest checkpoint was that of round 0
        again.write(row)
    again.close()
    assert service.written == [(r, r / 2) for r in range(4)]
    assert service.closed == 2
    kept = json.loads((tmp_path / "log" / f"{name}.json").read_text())
    assert kept["last_round"] == 3
    if name != "tensorboard":  # whose files lie in the run's folder
        first, second = service.begun
        called = {"wandb": "id", "trackio": "name"}[name]
        assert kept["run"] in first[called]
        assert first == second
        assert first["resume"] == "allow"
        assert first["config"] == {"loop": "online"}


def test_numbers_are_finite_and_by_their_names():
    row = {"round": 2, "loss": 0.5, "x": None, "y": float("nan"), "z": "text", "b": True, "n": 3}
    assert numbers_of(row) == {"loss": 0.5, "n": 3}


@pytest.mark.parametrize("name", WRITERS.names())
def test_a_missing_package_is_named_before_any_work(monkeypatch, name):
    for module in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    message = rf'\[log\] {name} must be installed .* pip install "pyengine\[{name}\]"'
    with pytest.raises(MissingDependencyError, match=message):
        RoundLog([{"name": name}], print)


def test_what_cannot_be_written_is_said_and_nothing_else_suffers(tmp_path, service, monkeypatch):
    words = []
    log = log_of(tmp_path, "wandb", "trackio", say=words.append)
    monkeypatch.setattr(service, "finish", lambda: 1 / 0)

    def refuse(numbers, step):
        raise OSError("no network")

    monkeypatch.setattr(service, "log", refuse)
    log.write(ROWS[1])
    log.close()
    assert words[:2] == [
        f"log: round 1 of {name} was not written: OSError: no network"
        for name in ("wandb", "trackio")
    ]
    assert words[2:] == [
        f"log: {name} was not closed: ZeroDivisionError: division by zero"
        for name in ("wandb", "trackio")
    ]


def test_what_cannot_begin_or_be_read_ends_the_run(tmp_path, service, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"\[log\] must name each writer once but is wandb, wandb"
    ):
        RoundLog([{"name": "wandb"}] * 2, print)
    monkeypatch.setattr(
        sys.modules["wandb"], "init", lambda **options: (_ for _ in ()).throw(OSError("no key"))
    )
    with pytest.raises(ConfigError, match="wandb must be able to begin but OSError: no key"):
        log_of(tmp_path, "wandb")
    (tmp_path / "trackio.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"trackio.json\] must hold an id and a round but 'run'"
    ):
        log_of(tmp_path, "trackio")


def test_what_leaves_the_machine_needs_leave(service):
    with pytest.raises(ConfigError, match=r"would be sent to wandb, .* --log wandb, or trust"):
        RoundLog([{"name": "wandb"}], print, allowed=["trackio"])
    RoundLog([{"name": "wandb"}], print, allowed=["wandb"])
    RoundLog([{"name": "wandb", "mode": "offline"}, {"name": "tensorboard"}], print, allowed=[])


def test_trackio_has_the_optimizers_step_by_another_name(tmp_path, service, monkeypatch):
    given = []
    monkeypatch.setattr(service, "log", lambda numbers, step: given.append((numbers, step)))
    log_of(tmp_path, "trackio").write({"round": 2, "step": 7, "loss": 0.5})
    assert given == [({"optimizer_step": 7, "loss": 0.5}, 2)]
