"""The C core alone, under sanitizers: random operations, checked after each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ["containers", "policy", "scheduler", "scheduler_batch", "scheduler_check", "scheduler_queue"]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = [
    "-std=gnu11",
    "-g",
    "-O1",
    "-DBT_DEBUG_COUNTERS",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


def compile_driver(target: Path, name: str, sources: list[str]) -> None:
    native = ROOT / "tests" / "native"
    files = [str(ROOT / "_native" / f"{source}.c") for source in sources]
    include = ["-I", str(ROOT / "_native"), "-include", str(native / "fuzz_memory.h")]
    command = [str(COMPILER), *FLAGS, *include, *files, str(native / f"{name}.c"), "-lm", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode and "fsanitize" in done.stderr + done.stdout:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_scheduler_keeps_its_invariants_under_random_operations(tmp_path: Path) -> None:
    driver = tmp_path / "fuzz_scheduler"
    compile_driver(driver, "fuzz_scheduler", CORE)
    for seed in ("1", "2"):
        done = subprocess.run([driver, seed, "50000"], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
