"""`python -m pyengine ...` whose files on rank 0 may have PYENGINE_TEST_FILE_BYTES at most."""

from __future__ import annotations

import os
import resource
import runpy
import sys

if __name__ == "__main__":
    if os.environ["RANK"] == "0" and (limit := os.environ.get("PYENGINE_TEST_FILE_BYTES")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sys.argv = sys.argv[1:]
    runpy.run_module("pyengine", run_name="__main__", alter_sys=True)
