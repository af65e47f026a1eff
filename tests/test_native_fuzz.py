"""The C core alone, under sanitizers: random operations, and policies made for a test."""

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


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("policy", [LEARNED, ["tests/native/fuzz_policy.c"]], ids=["learned", "random"])
def test_scheduler_keeps_its_invariants_under_random_operations(policy: list[str], tmp_path: Path) -> None:
    driver = tmp_path / "fuzz_scheduler"
    compile_driver(driver, [*SCHEDULER, *policy, "tests/native/fuzz_scheduler.c"])
    for seed in ("1", "2"):
        done = subprocess.run([driver, seed, "50000"], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_late_calls_are_refused_dropped_or_saved_by_a_smaller_batch(tmp_path: Path) -> None:
    driver = tmp_path / "check_late"
    compile_driver(driver, [*SCHEDULER, "tests/native/check_late.c"])
    done = subprocess.run([driver], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_cost_model_says_how_sure_it_is(tmp_path: Path) -> None:
    driver = tmp_path / "check_cost"
    compile_driver(driver, ["_native/cost.c", "tests/native/check_cost.c"])
    done = subprocess.run([driver, "sureness"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
