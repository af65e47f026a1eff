"""How fast do large arrays travel?

One worker, a model that returns its input, uint8 of 600,000 bytes per call, 64 calls outstanding from one
client process over ipc, closed loop. Every answer is checked by its first and last byte.

Beside it: a C echo of 600,000-byte messages over the same libzmq (there and back, like the call), and memcpy
of 38 MB into memory that is mapped already.

Printed: GB/s of payload, counted once for each call although it travels four times (client, dispatcher,
worker, and back) and the echo's twice; CPU of the server per GB.

How to run: python bench/bench_large_payload.py [--seconds 2] [--plane native|plain] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import uvloop

from batching import connect

sys.path.insert(0, str(Path(__file__).parent))
from bench_wire import Served, build_driver, measure_echo
from processes import machine

BYTES = 600_000
OUTSTANDING = 64
RESULT = Path(__file__).parent / "results" / "large_payload.json"


async def closed_loop(handle, seconds: float) -> int:
    stop_at = time.perf_counter() + seconds
    made = 0

    async def caller(number: int) -> None:
        nonlocal made
        x = np.full(BYTES, number, dtype=np.uint8)
        while time.perf_counter() < stop_at:
            answer = await handle.async_run(x)
            made += 1
            if answer[0] != number or answer[-1] != number:
                raise AssertionError("somebody else's answer")

    await asyncio.gather(*(caller(number) for number in range(OUTSTANDING)))
    return made


def measure_service(seconds: float) -> dict[str, float]:
    served = Served(None)
    handle = connect(served.endpoint, "noop")
    try:
        uvloop.run(closed_loop(handle, min(0.5, seconds)))
        cpu, started = served.cpu_s(), time.perf_counter()
        made = uvloop.run(closed_loop(handle, seconds))
        took = time.perf_counter() - started
        cpu = served.cpu_s() - cpu
    finally:
        handle.close()
        served.close()
    size = made * BYTES
    return {"gb_per_s": round(size / took * 1e-9, 3), "server_cpu_s_per_gb": round(cpu / size * 1e9, 3)}


def measure_copy() -> float:
    source = np.ones(OUTSTANDING * BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    target[:] = source
    started = time.perf_counter()
    for _ in range(20):
        target[:] = source
    return 20 * source.nbytes / (time.perf_counter() - started) * 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--plane", choices=("native", "plain"), default=None)
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name} into bench/results")
    options = parser.parse_args()
    if options.plane:
        os.environ["BATCHING_DATA_PLANE"] = options.plane
    service = measure_service(options.seconds)
    echo = measure_echo(build_driver(), OUTSTANDING, options.seconds, BYTES)
    echo_gb_per_s = round(echo["calls_per_s"] * BYTES * 1e-9, 3)
    copy_gb_per_s = round(measure_copy(), 2)
    print(
        f"service  {service['gb_per_s']:7.3f} GB/s, {service['server_cpu_s_per_gb']:.2f} s of server CPU/GB"
    )
    print(f"C echo   {echo_gb_per_s:7.3f} GB/s")
    print(f"memcpy   {copy_gb_per_s:7.2f} GB/s")
    if options.json:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({
            "bench": "large_payload", "bytes": BYTES, "outstanding": OUTSTANDING, "seconds": options.seconds,
            "plane": os.environ.get("BATCHING_DATA_PLANE", ""),
            "machine": machine(),
            "service": service, "echo_gb_per_s": echo_gb_per_s, "memcpy_gb_per_s": copy_gb_per_s,
        }, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
