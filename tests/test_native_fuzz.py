"""The C core alone, under sanitizers: random operations, and policies made for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_driver import COMPILER, LEARNED, SCHEDULER, compile_driver


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
