"""A fresh Python process that imports the same pyengine as this one, installed or not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path


def package_folder() -> Path:
    """The folder of the pyengine package that `import pyengine` finds."""
    spec = importlib.util.find_spec("pyengine")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` with `environment` added, and returns what it printed and its exit status."""
    env = {**os.environ, "PYTHONPATH": str(package_folder().parent), **environment}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=env
    )


def printed(code: str, **environment: str) -> str:
    """What `code` printed; fails with its traceback if it failed."""
    result = run_python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
