"""Programs past their limits are stopped and reported: as root and not, in both ways."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_programs
import pytest
from fresh_python import package_folder
from hostile_programs import HOSTILE, MORE, REFEREE

from pyengine.preferences.sources.verifiers.sandbox import run as sandbox
from pyengine.preferences.sources.verifiers.sandbox.limits import Limits
from pyengine.preferences.sources.verifiers.sandbox.run import SandboxError, containment, run

NOBODY = 65534
WAYS = ("namespaces", "filters")


def works(way: str) -> bool:
    try:
        run(way, "", [], [], Limits())
    except SandboxError:
        return False
    return True


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """On loopback; a connection to it would wait here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def open_copy() -> Iterator[Path]:
    """The sandbox's files alone, where everybody may read them."""
    folder = Path(tempfile.mkdtemp(prefix="pyengine-open-"))
    try:
        part = Path(*hostile_programs.SANDBOX.split("."))
        shutil.copytree(package_folder().parent / part, folder / part)
        shutil.copy(package_folder() / "errors.py", folder / "pyengine")
        shutil.copy(hostile_programs.__file__, folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


def python_of_everybody() -> str:
    """An interpreter that any user may begin; "" where there is none."""
    change = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    for python in (sys.executable, "/usr/bin/python3"):
        check = [python, "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(check, capture_output=True, **change).returncode == 0:
                return python
        except OSError:
            continue
    return ""


USERS = [0, NOBODY] if os.geteuid() == 0 else [os.geteuid()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("user", USERS, ids=lambda user: "root" if user == 0 else "user")
def test_programs_are_stopped(
    way: str, user: int, listener: socket.socket, open_copy: Path
) -> None:
    """Each of the hostile programs, begun by root and by another user, in both ways."""
    python = python_of_everybody()
    if not python:
        pytest.skip("no Python >= 3.11 that another user may begin")
    port, secret = listener.getsockname()[1], open_copy / "secret"
    secret.write_text("ours")
    secret.chmod(0o644)
    programs = open_copy / "programs"  # other tests' programs have theirs elsewhere
    programs.mkdir()
    programs.chmod(0o777)
    change = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
    result = subprocess.run(
        [python, "-S", "-P", open_copy / "hostile_programs.py", open_copy, way, str(port), secret],
        capture_output=True,
        env={"SECRET": "s3cret", "TMPDIR": str(programs)},
        text=True,
        cwd="/",
        **change,
    )
    if "SandboxError" in result.stderr:
        pytest.skip(f"{way} do not work here for user {user}: {result.stderr[-300:]}")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    for name, (_, outcome, limit) in HOSTILE.items():
        wanted = [[outcome, limit]]
        if name == REFEREE and way == "namespaces":
            wanted.append(["", ""])  # the first process of a room does not hear such signals
        assert report["found"][name][:2] in wanted, (name, report["found"][name])
    with pytest.raises(BlockingIOError):
        listener.accept()  # nobody came
    hidden, mine, ours, environment, is_root = report["seen"]
    assert (mine, environment, is_root) == ("mine", False, False)
    assert ours in ("FileNotFoundError", "PermissionError")
    if way == "filters":  # elsewhere the number is the room's own
        assert not Path(f"/proc/{hidden}").exists()
    assert not list(programs.iterdir())


def processes_of(folder: Path) -> list[str]:
    """Processes whose command line names a folder: launcher, referee, program and its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
    return found


def wait_until(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_when_we_are_killed(way: str, open_copy: Path) -> None:
    """kill -9 of the process that began it all: launcher, referee, program, hidden grandchild."""
    python = python_of_everybody()
    if not python:
        pytest.skip("no Python >= 3.11 that another user may begin")
    command = [python, "-S", "-P", open_copy / "hostile_programs.py", open_copy, way]
    ours = subprocess.Popen(command, stderr=subprocess.PIPE, env={"TMPDIR": str(open_copy)})
    wait_until(lambda: ours.poll() is not None or len(processes_of(open_copy)) == 5)
    if ours.poll() is not None:
        pytest.skip(f"{way} do not work here: {ours.communicate()[1]!r}")
    ours.kill()
    ours.communicate()
    wait_until(lambda: not processes_of(open_copy), 10)  # they would sleep for longer


def test_limits_by_other_ways() -> None:
    """Threads for processes, a socket whose error is caught, a large file and a flood of text."""
    found = hostile_programs.outcomes(sandbox, containment().way, 9, MORE)
    wanted = {name: [outcome, limit] for name, (_, outcome, limit) in MORE.items()}
    assert {name: result[:2] for name, result in found.items()} == wanted


def test_all_files_together_have_a_limit() -> None:
    if not works("namespaces"):
        pytest.skip("namespaces do not work here")
    program = "for i in range(5):\n    open(str(i), 'wb').write(b'x' * (1 << 20))\n"
    report = run("namespaces", program, [], [], Limits(folder_bytes=3 << 20))
    assert (report["began"]["failed"], report["began"]["limit"]) == ("over_limit", "folder_size")


def test_cpu_is_counted_beside_the_clock() -> None:
    program = "import time\nwhile time.process_time() < 4:\n    pass\n"
    report = run(containment().way, program, [], [], Limits(cpu_s=1, wall_s=60))
    assert (report["began"]["failed"], report["began"]["limit"]) == ("over_limit", "cpu")


def test_the_deadline_is_for_all_of_a_program() -> None:
    """Two scripts of one: the first prints what it reads, the second sleeps past the end."""
    sleepy = "import time\ntext = input()\nprint(text)\ntime.sleep(6 * len(text))\n"
    report = run(containment().way, sleepy, ["\n", "x\n"], [], Limits(wall_s=2.0))
    assert report["runs"][0] == {"output": "\n"}
    assert report["runs"][1]["failed"] == "timed_out"


def test_what_contains_is_said() -> None:
    found = containment()
    assert found.missing == []
    assert found.way in WAYS
