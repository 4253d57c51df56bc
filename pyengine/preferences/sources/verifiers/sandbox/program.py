"""What runs in the program's processes: the program, then what is asked of it.

Everything here shares its interpreter with the program, which can change all of it; so nothing
here decides whether a value is right.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import sys
import threading
import types
from typing import Any

from pyengine.preferences.sources.verifiers.sandbox.plain_data import encoded


def prepare(home: str) -> None:
    """An empty environment, and the same draws for the same program."""
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"})
    random.seed(0)
    sys.argv[:] = ["program.py"]
    for name in [name for name in sys.modules if name.split(".")[0] == "pyengine"]:
        del sys.modules[name]


def _namespace(name: str) -> dict[str, Any]:
    """A module's, which dataclasses and pickles look up by its name."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module.__dict__


def described(error: BaseException) -> dict[str, Any]:
    """As data: what it is, its number where the system gave one, what it says."""
    try:
        message = str(error)[:300]
    except BaseException:  # an exception of the program's own making
        message = ""
    number = error.errno if isinstance(error, OSError) else None
    return {"error": type(error).__name__, "errno": number, "message": message}


def serve(source: str, questions: int, replies: int) -> None:
    """Answers questions, a line of JSON each, until there are no more.

    {"do": "run"} runs the program, {"do": "statement", "text"} a test, {"do": "call", "text"} gives
    an expression's value as a text of JSON. Each brings a nonce, which comes after the program was
    run, and which its reply gives back.
    """
    loads, dumps, write, leave = json.loads, json.dumps, os.write, os._exit
    kept, namespace = dict(vars(builtins)), _namespace("program")
    for line in open(questions, "rb"):  # noqa: SIM115  lives as long as the process
        question = loads(line)
        vars(builtins).update(kept)  # a program may have put its own len or all there
        reply = _answer(question, source, namespace)
        data = dumps(reply | {"nonce": question["nonce"]}).encode() + b"\n"
        while data:
            data = data[write(replies, data) :]
    leave(0)


def _answer(question: dict[str, Any], source: str, namespace: dict[str, Any]) -> dict[str, Any]:
    try:
        if question["do"] == "run":
            exec(compile(source, "program.py", "exec"), namespace)
        elif question["do"] == "statement":
            exec(compile(question["text"], "test.py", "exec"), namespace)
        else:
            value = eval(compile(question["text"], "test.py", "eval"), namespace)
            return {"value": json.dumps(encoded(value))}
        return {"done": True}
    except BaseException as error:
        return described(error)


def script(source: str, replies: int) -> None:
    """Runs the program as python would, input at fd 0 and output at fd 1."""
    code, reply = 0, b""
    try:
        try:
            exec(compile(source, "program.py", "exec"), _namespace("__main__"))
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()
    except BaseException as error:
        code, reply = 1, json.dumps(described(error)).encode()
    os.write(replies, reply)
    os._exit(code & 255)
