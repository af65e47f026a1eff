"""What does a call over ZeroMQ cost, when the model costs nothing?

One worker, a model that returns its input, float32 of shape (1, 128) per call, closed loop: each of N
coroutines of the client process calls again as soon as it has its answer. Every answer is checked.
N = 1, 16, 64, 256 from one process over ipc and tcp; and 64 client sockets with 4 calls outstanding each,
over ipc, spoken by a C loop that only writes and reads packets, so that the server is what is measured.

Beside it, in the same run: a C echo over the same libzmq. ROUTER and DEALER, one 600-byte message
per request, nothing parsed: what libzmq itself costs when calls do not share messages.

Printed: calls/s as the callers see them, p50 and p99 in microseconds, mean rows of a batch, and CPU
microseconds per call of the server: the dispatcher's process and the worker's, all threads, libzmq's too.

How to run: python bench/bench_wire.py [--seconds 1] [--plane native|plain] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import uvloop
import zmq.backend.cython._zmq as binding

from batching import Runner, connect, runner_service
from batching.signature import Signature

sys.path.insert(0, str(Path(__file__).parent))
from processes import cpu_s, machine, workers_of

COLUMNS = 128
RESULT = Path(__file__).parent / "results" / "wire.json"


class NoOp(Runner):
    def _run_batch(self, x: np.ndarray) -> np.ndarray:
        return x


def server(endpoint: str | None, pipe) -> None:
    """The dispatcher's process: serves until told to stop, and says what it has used."""
    with runner_service(NoOp("noop"), workers=1, endpoint=endpoint) as service:
        pipe.send((service.endpoint, workers_of(os.getpid())))
        while pipe.recv() == "batches":
            numbers = service.statistics()
            pipe.send((numbers.batches, numbers.answered))


class Served:
    """A server in a process of its own."""

    def __init__(self, endpoint: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=server, args=(endpoint, theirs))
        self.process.start()
        self.endpoint, workers = self.pipe.recv()
        self.pids = [self.process.pid, *workers]

    def numbers(self) -> tuple[int, int]:
        self.pipe.send("batches")
        return self.pipe.recv()

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids)

    def close(self) -> None:
        self.pipe.send("stop")
        self.process.join()


async def closed_loop(handle, callers: int, seconds: float) -> tuple[int, list[float]]:
    """Calls made, and seconds of every one (of up to 200,000)."""
    latencies: list[float] = []
    stop_at = time.perf_counter() + seconds
    made = 0

    async def caller(number: int) -> None:
        nonlocal made
        row = np.full((1, COLUMNS), number, dtype=np.float32)
        clock, note = time.perf_counter, latencies.append
        now = clock()
        while now < stop_at:
            answer = await handle.async_run(row)
            before, now = now, clock()
            note(now - before)
            made += 1
            if answer[0, 0] != number:
                raise AssertionError("somebody else's answer")

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return made, latencies


def measure(served: Served, callers: int, seconds: float) -> dict[str, float]:
    handle = connect(served.endpoint, "noop")
    try:
        uvloop.run(closed_loop(handle, callers, min(0.3, seconds)))  # the policy learns; code is warm
        batches, answered = served.numbers()
        cpu, own, started = served.cpu_s(), time.process_time(), time.perf_counter()
        made, latencies = uvloop.run(closed_loop(handle, callers, seconds))
        took = time.perf_counter() - started
        cpu, own = served.cpu_s() - cpu, time.process_time() - own
        batches, answered = (b - a for a, b in zip((batches, answered), served.numbers(), strict=True))
    finally:
        handle.close()
    return row(made, took, latencies, cpu, batches, own)


def row(made, took, latencies, cpu, batches, own) -> dict[str, float]:
    micro = np.asarray(latencies) * 1e6
    return {
        "calls_per_s": round(made / took),
        "p50_us": round(float(np.percentile(micro, 50)), 1) if len(micro) else None,
        "p99_us": round(float(np.percentile(micro, 99)), 1) if len(micro) else None,
        "mean_batch": round(made / batches, 1) if batches else None,
        "server_cpu_us": round(cpu / made * 1e6, 2),
        "client_cpu_us": round(own / made * 1e6, 2),
    }


def measure_sockets(served: Served, driver: str, seconds: float) -> dict[str, float]:
    """64 sockets, 4 calls outstanding on each, driven by C."""
    batches, _ = served.numbers()
    cpu = served.cpu_s()
    command = [driver, "sockets", served.endpoint, str(seconds), key_of_a_call().hex()]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu = served.cpu_s() - cpu
    made, took, own, p50, p99 = map(float, run.stdout.split())
    batches = served.numbers()[0] - batches
    return {
        "calls_per_s": round(made / took), "p50_us": round(p50, 1), "p99_us": round(p99, 1),
        "mean_batch": round(made / batches, 1), "server_cpu_us": round(cpu / made * 1e6, 2),
        "client_cpu_us": round(own / made * 1e6, 2),
    }  # fmt: skip


def key_of_a_call() -> bytes:
    signature = Signature(NoOp("noop")._run_batch)
    payload = signature.describe((np.zeros((1, COLUMNS), np.float32),), {}, False).payload
    return signature.encode(payload).key


def measure_echo(driver: str, outstanding: int, seconds: float, size: int = 600) -> dict[str, float]:
    command = [driver, "echo", str(outstanding), str(seconds), str(size)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    made, took, server_cpu, own, p50, p99 = map(float, run.stdout.split())
    return {
        "calls_per_s": round(made / took), "p50_us": round(p50, 1), "p99_us": round(p99, 1),
        "mean_batch": None, "server_cpu_us": round(server_cpu / made * 1e6, 2),
        "client_cpu_us": round(own / made * 1e6, 2),
    }  # fmt: skip


def build_driver() -> str:
    """The C side of this bench, compiled beside its source's copy in a temporary folder."""
    root = Path(__file__).resolve().parent.parent
    out = Path(tempfile.mkdtemp(prefix="batching-bench-")) / "driver"
    sources = [root / "bench" / "wire_driver.c", root / "_native" / "wire.c", root / "_native" / "zmqapi.c"]
    library = json.dumps(str(Path(binding.__file__)))
    subprocess.run(
        ["cc", "-O2", "-std=gnu11", f"-DLIBRARY={library}", f"-I{root / '_native'}", *map(str, sources),
         "-o", str(out), "-ldl", "-lpthread", *python_link()],
        check=True,
    )  # fmt: skip
    return str(out)


def python_link() -> list[str]:
    """pyzmq's extension needs the interpreter's symbols when it is opened outside of one."""
    folder, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    return [f"-L{folder}", f"-lpython{version}", f"-Wl,-rpath,{folder},--no-as-needed", f"-lpython{version}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--plane", choices=("native", "plain"), default=None)
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name} into bench/results")
    options = parser.parse_args()
    if options.plane:
        os.environ["BATCHING_DATA_PLANE"] = options.plane
    driver = build_driver()
    table: dict[str, dict[str, float]] = {}

    def show(name: str, numbers: dict[str, float]) -> None:
        table[name] = numbers
        cells = [f"{numbers[key] if numbers[key] is not None else '':>12}" for key in numbers]
        print(f"{name:24}", *cells, flush=True)

    heads = ("calls/s", "p50 us", "p99 us", "mean batch", "server us", "client us")
    print(f"{'':24}", *(f"{head:>12}" for head in heads))
    for transport, endpoint in (("ipc", None), ("tcp", "tcp://127.0.0.1:*")):
        served = Served(endpoint)
        try:
            for callers in (1, 16, 64, 256):
                show(f"{transport} {callers}", measure(served, callers, options.seconds))
            if transport == "ipc":
                show("ipc 64 sockets x 4", measure_sockets(served, driver, options.seconds))
        finally:
            served.close()
    for outstanding in (1, 256):
        show(f"C echo {outstanding}", measure_echo(driver, outstanding, options.seconds))
    if options.json:
        what = {"bench": "wire", "seconds": options.seconds, "plane": options.plane or "default"}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({**what, "machine": machine(), "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
