"""How fast do large arrays travel?

One worker, a model that returns its input, uint8 of 600,000 bytes per call, 64 calls outstanding from one
client process over ipc, closed loop. Every answer is checked by its first and last byte.

Beside it: a C echo of 600,000-byte messages over the same libzmq (there and back, like the call), and memcpy
of 38 MB into memory that is mapped already.

Printed: GB/s of payload, counted once for each call although it travels four times (client, dispatcher,
worker, and back) and the echo's twice; CPU of the server and of the client per GB. Medians of rounds, in each
of which one is measured right after the other.

How to run: python bench/bench_large_payload.py [--rounds 5] [--seconds 1] [--plane native|plain] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
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


def measure_both(rounds: int, seconds: float) -> list[dict[str, float]]:
    """The service and the echo in turn: what else runs on the machine disturbs both alike."""
    driver = build_driver()
    served = Served(None)
    handle = connect(served.endpoint, "noop")
    try:
        uvloop.run(closed_loop(handle, min(0.5, seconds)))
        return [measure_round(served, handle, driver, seconds) for _ in range(rounds)]
    finally:
        handle.close()
        served.close()


def measure_round(served: Served, handle, driver: str, seconds: float) -> dict[str, float]:
    cpu, own, started = served.cpu_s(), time.process_time(), time.perf_counter()
    made = uvloop.run(closed_loop(handle, seconds))
    took = time.perf_counter() - started
    cpu, own = served.cpu_s() - cpu, time.process_time() - own
    size = made * BYTES
    echo = measure_echo(driver, OUTSTANDING, seconds, BYTES)["calls_per_s"] * BYTES
    return {
        "gb_per_s": size / took * 1e-9, "echo_gb_per_s": echo * 1e-9, "of_echo": size / took / echo,
        "server_cpu_s_per_gb": cpu / size * 1e9, "client_cpu_s_per_gb": own / size * 1e9,
    }  # fmt: skip


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
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plane", choices=("native", "plain"), default=None)
    parser.add_argument("--json", action="store_true", help=f"write {RESULT.name} into bench/results")
    options = parser.parse_args()
    if options.plane:
        os.environ["BATCHING_DATA_PLANE"] = options.plane
    measured = measure_both(options.rounds, options.seconds)
    median = {key: round(statistics.median(each[key] for each in measured), 3) for key in measured[0]}
    shares = sorted(round(each["of_echo"], 2) for each in measured)
    copy_gb_per_s = round(measure_copy(), 2)
    print(
        f"service  {median['gb_per_s']:7.3f} GB/s, {median['server_cpu_s_per_gb']:.2f} s of server CPU/GB, "
        f"{median['client_cpu_s_per_gb']:.2f} s of client CPU/GB"
    )
    print(f"C echo   {median['echo_gb_per_s']:7.3f} GB/s")
    print(f"service / echo {median['of_echo']:.2f} ({shares[0]} to {shares[-1]})")
    print(f"memcpy   {copy_gb_per_s:7.2f} GB/s")
    if options.json:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({
            "bench": "large_payload", "bytes": BYTES, "outstanding": OUTSTANDING, "seconds": options.seconds,
            "rounds": options.rounds, "plane": os.environ.get("BATCHING_DATA_PLANE", ""),
            "machine": machine(), "median": median, "of_echo": shares, "memcpy_gb_per_s": copy_gb_per_s,
        }, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
