"""Steps of ranks that talk over slow links: time, its parts and bytes beside what is expected.

    sudo python benchmarks/ranks_over_links.py --model FOLDER [--ranks 4] [--rate 1] [--delay 10]

Every rank lives in a network namespace of its own, whose only link sends through `tc`'s token
bucket; between them this program holds each packet back for the delay, and for as long as what
arrives at one rank takes at the rate. (The netem discipline would do the delay where a kernel has
it.) Needs root, iproute2 and /dev/net/tun. The ranks share this machine's cores.

Printed are, of DPO steps, medians over steps of the slowest rank: the whole step, how long it
waited for gradients and for masters, and the bytes that left it beside 2 (N - 1)/N of the
gradient; the same ranks without links that are slow; and what the model of docs/distributed.md
says.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import heapq
import json
import os
import select
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Process
from pathlib import Path
from typing import Any

from machine import commit, cpu_name
from torch import Tensor

import pyengine as pe
from pyengine.ranks.launch import joined
from pyengine.ranks.world import Wait, World, entered

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 65_000  # few large packets: what is measured is not how fast this program is
ADDRESS = "10.77.0.{}"
SHARDS = 4


# Links


def tell(*command: str) -> None:
    subprocess.run(command, check=True)


@contextlib.contextmanager
def namespaces(ranks: int, gbit: float) -> Iterator[list[int]]:
    """Of each rank the end of its link that is not in its namespace."""
    ends = []
    try:
        for rank in range(ranks):
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            name, space = f"rank{rank}", f"pyengine{rank}"
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
            ends.append(end)
            tell("ip", "netns", "add", space)
            tell("ip", "link", "set", name, "netns", space)
            inside = ("ip", "-n", space)
            tell(*inside, "link", "set", "lo", "up")
            tell(*inside, "addr", "add", ADDRESS.format(rank + 1) + "/24", "dev", name)
            tell(*inside, "link", "set", name, "mtu", str(MTU), "up")
            shape = ("tbf", "rate", f"{gbit}gbit", "burst", "256kb", "limit", "16mb")
            tell("tc", "-n", space, "qdisc", "add", "dev", name, "root", *shape)
        yield ends
    finally:
        for rank in range(ranks):
            subprocess.run(["ip", "netns", "del", f"pyengine{rank}"], check=False)


def relay(ends: Sequence[int], gbit: float, delay_s: float) -> None:
    """Carries packets from link to link, each `delay_s` late, and no faster than one link takes."""
    to = {bytes(map(int, ADDRESS.format(i + 1).split("."))): i for i in range(len(ends))}
    free = [0.0] * len(ends)  # when a link has taken all that is on its way to it
    waiting: list[tuple[float, int, int, bytes]] = []
    count, poll = 0, select.epoll()
    for end in ends:
        poll.register(end, select.EPOLLIN)
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, there, packet = heapq.heappop(waiting)
            with contextlib.suppress(BlockingIOError):
                os.write(ends[there], packet)
        left = waiting[0][0] - time.monotonic() if waiting else 1.0
        for end, _ in poll.poll(max(left, 0.0)):
            with contextlib.suppress(BlockingIOError):
                for _ in range(16):
                    packet = os.read(end, MTU + 100)
                    at = to.get(packet[16:20])
                    if at is None or packet[0] >> 4 != 4:
                        continue
                    takes = 8e-9 * len(packet) / gbit
                    free[at] = max(time.monotonic() + delay_s, free[at] + takes)
                    count += 1
                    heapq.heappush(waiting, (free[at], count, at, packet))


# A rank


class Timed:
    """A world that counts how long it is waited for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rank, self.size, self.local_size = world.rank, world.size, world.local_size
        self.seconds = dict.fromkeys(("gather", "exchange", "spread"), 0.0)

    def _timed(self, what: str, work: Any, *args: Any) -> Any:
        start = time.perf_counter()
        found = work(*args)
        self.seconds[what] += time.perf_counter() - start
        return found

    def gather(self, data: bytes) -> list[bytes]:
        return self._timed("gather", self._world.gather, data)  # type: ignore[no-any-return]

    def gather_tensors(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return self._timed("gather", self._world.gather_tensors, mine, lengths)  # type: ignore[no-any-return]

    def exchange(self, pieces: Sequence[Tensor], others: Sequence[Tensor]) -> Wait:
        wait = self._timed("exchange", self._world.exchange, pieces, others)
        return lambda: self._timed("exchange", wait)

    def spread(self, pieces: Sequence[Tensor]) -> Wait:
        wait = self._timed("spread", self._world.spread, pieces)
        return lambda: self._timed("spread", wait)

    def collect(self, mine: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return self._world.collect(mine, lengths)


def sent_bytes(rank: int) -> int:
    counted = Path(f"/sys/class/net/rank{rank}/statistics/tx_bytes")
    return int(counted.read_text()) if counted.exists() else 0


def pairs(count: int) -> pe.Preferences:
    """Of 64 + 64 tokens."""

    def words(seed: int) -> list[int]:
        return [(31 * seed + 7 * i) % 4000 + 100 for i in range(64)]

    groups = [
        pe.Group(words(3 * i), [pe.Response(words(3 * i + j)) for j in (1, 2)])
        for i in range(count)
    ]
    return pe.Preferences(groups, [pe.Comparison(i, 0, 1) for i in range(count)])


def job(asked: argparse.Namespace) -> None:
    """What every rank does; prints its times and bytes of each step as JSON."""
    with joined(pe.__version__) as world, entered(Timed(world)) as timed:
        assert isinstance(timed, Timed)
        engine = pe.Engine.from_pretrained(
            asked.model,
            dtype=asked.dtype,
            shards=SHARDS,
            kv_tokens=4096,
            lora=pe.LoraConfig(r=16, alpha=32) if asked.lora else None,
            learning_rate=1e-6,
        )
        batch = pairs(asked.pairs)
        steps = []
        for _ in range(asked.steps + 1):
            world.gather(b"")  # all begin together
            before, seconds = sent_bytes(world.rank), dict(timed.seconds)
            start = time.perf_counter()
            engine.update(batch, pe.objectives.DPO())
            whole = time.perf_counter() - start
            spent = {name: timed.seconds[name] - seconds[name] for name in seconds}
            world.gather(b"")
            steps.append(spent | {"step": whole, "bytes": sent_bytes(world.rank) - before})
        sizes = {name: p.numel() for name, p in engine._network.parameters.items()}
        outside = sum(n for name, n in sizes.items() if not name.startswith("layers."))
        told = {"steps": steps[1:], "trained": sum(sizes.values()), "outside": outside}
        print(json.dumps(told), flush=True)


# All


def run(asked: argparse.Namespace, links: bool) -> list[dict[str, Any]]:
    """What each rank has printed."""
    command = [sys.executable, __file__, "--job", *sys.argv[1:]]
    begun = []
    for rank in range(asked.ranks):
        env = {
            **os.environ,
            "MASTER_ADDR": ADDRESS.format(1) if links else "127.0.0.1",
            "MASTER_PORT": "29417",
            "WORLD_SIZE": str(asked.ranks),
            "LOCAL_WORLD_SIZE": str(asked.ranks),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_WAIT_POLICY": "passive",
            "GLOO_SOCKET_IFNAME": f"rank{rank}" if links else "lo",
        }
        inside = ["ip", "netns", "exec", f"pyengine{rank}"] if links else []
        begun.append(
            subprocess.Popen([*inside, *command], env=env, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate()[0] for process in begun]
    if any(process.returncode for process in begun):
        raise SystemExit("a rank has failed")
    return [json.loads(text.splitlines()[-1]) for text in said]


def medians(of_ranks: list[dict[str, Any]]) -> dict[str, float]:
    """Of the rank that waited least in each step: the one that the others wait for."""
    rows = []
    for of_step in zip(*(found["steps"] for found in of_ranks), strict=True):
        slowest = min(of_step, key=lambda s: s["gather"] + s["exchange"] + s["spread"])
        rows.append(slowest | {"bytes": max(s["bytes"] for s in of_step)})
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def modelled(asked: argparse.Namespace, fast: dict[str, float], job: dict[str, Any]) -> float:
    """Seconds of a step: what it computes, and what of its transfers nothing hides.

    A layer's gradients travel behind the way back, two thirds of what is computed; those outside
    of layers come last; masters travel when all is done. A collective passes each rank in turn.
    """
    waits = fast["gather"] + fast["exchange"] + fast["spread"]
    computed = fast["step"] - waits
    others = (asked.ranks - 1) / asked.ranks
    inner, outer = (
        4 * others * n * 8e-9 / asked.rate
        for n in (job["trained"] - job["outside"], job["outside"])
    )
    latency = 1e-3 * asked.delay * (1 + 1 + 2 * (asked.ranks - 1))  # two moves, two collectives
    return computed + max(inner - 2 / 3 * computed, 0) + outer + (inner + outer) + latency


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1.0, help="Gbit/s of each link")
    parser.add_argument("--delay", type=float, default=10.0, help="ms from rank to rank")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.model = asked.model.resolve()
    if asked.job:
        job(asked)
        return
    what = f"{asked.pairs} pairs of 64 + 64, {asked.dtype}{', LoRA' if asked.lora else ''}"
    print(f"{cpu_name()}, commit {commit()}, {asked.ranks} ranks, {what}")
    fast = medians(run(asked, links=False))
    print(
        "local  " + "  ".join(f"{k} {v:.2f}" for k, v in fast.items() if k != "bytes"), flush=True
    )
    with namespaces(asked.ranks, asked.rate) as ends:
        carrier = Process(target=relay, args=(ends, asked.rate, asked.delay / 1e3), daemon=True)
        carrier.start()
        found = run(asked, links=True)
        carrier.terminate()
    slow = medians(found)
    print("links  " + "  ".join(f"{k} {v:.2f}" for k, v in slow.items() if k != "bytes"))
    print(f"model  step {modelled(asked, fast, found[0]):.2f}")
    expected = 2 * (asked.ranks - 1) / asked.ranks * 4 * found[0]["trained"]
    print(f"bytes  {slow['bytes']:.0f} sent, {slow['bytes'] / expected:.3f} of {expected:.0f}")


if __name__ == "__main__":
    main()
