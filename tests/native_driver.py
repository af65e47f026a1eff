"""Compiles the C drivers of tests/native, with the sources of the core that they drive, under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCHEDULER = [
    "_native/containers.c",
    "_native/scheduler.c",
    "_native/scheduler_batch.c",
    "_native/scheduler_check.c",
    "_native/scheduler_late.c",
    "_native/scheduler_queue.c",
]
LEARNED = [
    "_native/arrivals.c",
    "_native/cost.c",
    "_native/policy.c",
    "_native/sizing.c",
    "_native/waiting.c",
]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = [
    "-std=gnu11",
    "-g",
    "-O1",
    "-DBT_DEBUG_COUNTERS",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


def compile_driver(target: Path, sources: list[str]) -> None:
    include = ["-I", str(ROOT / "_native"), "-include", str(ROOT / "tests/native/fuzz_memory.h")]
    files = [str(ROOT / source) for source in sources]
    command = [str(COMPILER), *FLAGS, *include, *files, "-lm", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode and "fsanitize" in done.stderr + done.stdout:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
