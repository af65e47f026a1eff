"""What does one decision cost, and the rest of the scheduler?

Question     nanoseconds of bt_decide on average, over all decisions and over those with something to decide
             (calls in the queue and a free slot; forming the batch is in it), and of bt_admit and
             bt_finished, in five kinds of traffic. Reach: 200 ns a decision.
Measured     bench/decision_driver.c drives the C scheduler with a clock of its own, so that nothing
             else is in the figures; less what reading the clock takes. The median of several rounds.
             With --instructions also what callgrind counts, which does not depend on the machine's load.

Last result (bench/results/decision.json; 2 cores, load 1.3): 49 ns a decision with a lone caller, 153 with
64 callers that come back within 100 us, 22 with 256 callers, 24 with Poisson calls, 215 with bursts (160
when the core was clocked higher).

How to run   python -P bench/bench_decision.py [--calls 200000] [--rounds 5] [--instructions] [--json FILE]
             It compiles the C core with cc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAFFIC = {
    "lone caller": ("loop", 1),
    "64 callers back within 100 us": ("spread", 64),
    "256 callers": ("loop", 256),
    "poisson, load 0.8": ("poisson", 0),
    "bursts of ~20": ("bursts", 0),
}
COLUMNS = ("admit", "decide", "asked", "finished")


def compile_driver() -> str:
    out = Path(tempfile.mkdtemp(prefix="batching-bench-")) / "driver"
    sources = (ROOT / "_native").glob("*.c")
    flags = ["-O3", "-g", "-DNDEBUG", "-std=gnu11", f"-I{ROOT / '_native'}"]
    driver = ROOT / "bench" / "decision_driver.c"
    subprocess.run(
        ["cc", *flags, str(driver), *map(str, sources), "-lm", "-ldl", "-lpthread", "-o", str(out)],
        check=True,
    )
    return str(out)


def times_ns(driver: str, kind: str, callers: int, calls: int) -> dict[str, float]:
    """ns of each entry point, and rows a batch."""
    printed = subprocess.run(
        [driver, kind, str(calls), str(callers)], check=True, capture_output=True, text=True
    ).stdout
    return {line.split()[0]: float(line.split()[2]) for line in printed.splitlines()}


def instructions(driver: str, kind: str, callers: int, calls: int) -> dict[str, float]:
    """Instructions of each entry point, all that it calls included, a call of it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        grind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        printed = subprocess.run(
            [*grind, driver, kind, str(-calls), str(callers)], check=True, capture_output=True, text=True
        ).stdout
        table = subprocess.run(
            ["callgrind_annotate", "--inclusive=yes", str(out)], check=True, capture_output=True, text=True
        ).stdout
    counts = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()}
    found = {}
    for name in ("admit", "decide", "finished"):
        row = re.search(rf"^\s*([\d,]+) .*:bt_{name} ", table, re.M)
        found[name] = int(row[1].replace(",", "")) / counts[name] if row else float("nan")
    return found


def measure(driver: str, kind: str, callers: int, calls: int, rounds: int) -> dict[str, float]:
    samples = [times_ns(driver, kind, callers, calls) for _ in range(rounds)]
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instructions", action="store_true", help="count them as well; needs valgrind")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    driver = compile_driver()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ns on average")
    print(f"{'traffic':32}{'admit':>8}{'decide':>8}{'asked':>8}{'finished':>10}{'rows a batch':>14}")
    rows = {}
    for name, (kind, callers) in TRAFFIC.items():
        row = measure(driver, kind, callers, chosen.calls, chosen.rounds)
        print(
            f"{name:32}{row['admit']:8.0f}{row['decide']:8.0f}{row['asked']:8.0f}{row['finished']:10.0f}"
            f"{row['batches']:14.1f}"
        )
        rows[name] = {f"{column}_ns": row[column] for column in COLUMNS} | {"rows_a_batch": row["batches"]}
        if chosen.instructions:
            counted = instructions(driver, kind, callers, chosen.calls // 5)
            rows[name] |= {f"{column}_instructions": count for column, count in counted.items()}
            print(" " * 32 + "instructions: " + ", ".join(f"{k} {v:.0f}" for k, v in counted.items()))
    worst = max(rows.values(), key=lambda row: row["decide_ns"])
    print(f"worst: {worst['decide_ns']:.0f} ns a decision")
    if chosen.json:
        chosen.json.parent.mkdir(exist_ok=True)
        report = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows}
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
