"""A small OpenAI-compatible endpoint on this machine, which misbehaves as it is told.

`python tests/judge_server.py --latency-s 0.1` serves until its input ends, in a process of its own,
and prints its address first.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 100, "completion_tokens": 10}
Behaviour = Callable[["Handler"], None]
Script = Callable[[int, dict], Behaviour]


def answer(content: Any, usage: Any = USAGE, **message: Any) -> Behaviour:
    """A completion; content that is no text is made JSON."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    message = {"role": "assistant", "content": text} | message
    body = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    return status(200, json.dumps(body | ({} if usage is None else {"usage": usage})))


def status(code: int, body: str = "{}", **headers: str) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.respond(code, body.encode(), headers)

    return behave


def cut(body: bytes = b'{"choices": [{"mess') -> Behaviour:
    """A body that ends before its announced length."""

    def behave(handler: Handler) -> None:
        handler.respond(200, body, {}, length=len(body) + 1000)
        handler.close()

    return behave


def hang_up(handler: Handler) -> None:
    """The connection ends without an answer."""
    handler.close()


def trickle(handler: Handler) -> None:
    """A byte now and then, and no end: no single read takes long."""
    handler.respond(200, b"{", {}, length=10_000)
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b" ")


def after(seconds: float, then: Behaviour) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.server.closing.wait(seconds)
        then(handler)

    return behave


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = self.server.see(self.path, dict(self.headers), body)
        try:
            self.server.script(number, body)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.server.leave()

    def respond(
        self, code: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        lines = {"content-type": "application/json", "content-length": length or len(body)}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{k}: {v}\r\n" for k, v in (lines | named).items())
        self.wfile.write(f"HTTP/1.1 {code} x\r\n{head}\r\n".encode() + body)

    def close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """script(number of the request from 0, its body) says what happens.

    requests  (path, headers, body) of all that came
    most      that were open at a time
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests = script, list[tuple[str, dict, dict]]()
        self.closing = threading.Event()
        self.open = self.most = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def see(self, path: str, headers: dict, body: dict) -> int:
        with self._lock:
            self.requests.append((path, headers, body))
            self.open += 1
            self.most = max(self.most, self.open)
            return len(self.requests) - 1

    def leave(self) -> None:
        with self._lock:
            self.open -= 1

    def handle_error(self, *_: Any) -> None:
        pass  # clients that hang up

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-s", type=float, default=0.1)
    latency_s = parser.parse_args().latency_s

    def script(_: int, body: dict) -> Behaviour:
        time.sleep(latency_s)
        field = next(iter(body["response_format"]["json_schema"]["schema"]["properties"]))
        return answer({field: "A" if field == "verdict" else 7})

    with Server(script) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
