"""The C core alone, under sanitizers: random operations, and policies made for a test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_driver import COMPILER, ENVIRONMENT, LEARNED, SCHEDULER, compile_driver, compile_plane_driver


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
def test_the_wire_codec_reads_nothing_beyond_a_broken_message(tmp_path: Path) -> None:
    driver = tmp_path / "fuzz_wire"
    compile_driver(driver, ["_native/wire.c", "tests/native/fuzz_wire.c"])
    done = subprocess.run([driver, "200000"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_plane_keeps_its_promises_to_many_threads_at_once(sanitizer: str, tmp_path: Path) -> None:
    driver = tmp_path / "drive_plane"
    compile_plane_driver(driver, sanitizer)
    command = [driver, "1", "4", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
