"""The policy's C code alone, under sanitizers: the memory that it asks for, and what it makes of costs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from native_driver import COMPILER, LEARNED, SCHEDULER, compile_driver

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="no C compiler")]


def run(driver: Path, *arguments: str) -> None:
    done = subprocess.run([driver, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_no_call_decision_or_end_of_a_batch_asks_for_memory(tmp_path: Path) -> None:
    driver = tmp_path / "check_allocation"
    compile_driver(driver, [*SCHEDULER, *LEARNED, "tests/native/check_allocation.c"])
    run(driver)


def test_busy_groups_are_followed_and_idle_ones_make_room(tmp_path: Path) -> None:
    driver = tmp_path / "check_arrivals"
    compile_driver(driver, ["_native/arrivals.c", "tests/native/check_arrivals.c"])
    run(driver)


def test_a_decision_looks_at_few_costs_however_many_rows_wait(tmp_path: Path) -> None:
    driver = tmp_path / "check_sizing"
    compile_driver(driver, ["_native/cost.c", "_native/sizing.c", "tests/native/check_sizing.c"])
    run(driver)


@pytest.fixture(scope="module")
def check_cost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    driver = tmp_path_factory.mktemp("cost") / "check_cost"
    compile_driver(driver, ["_native/cost.c", "tests/native/check_cost.c"])
    return driver


@pytest.mark.parametrize("section", ["sureness", "regimes", "strays", "steps", "second size", "noise"])
def test_the_cost_model_keeps_the_facts_of(section: str, check_cost: Path) -> None:
    run(check_cost, section)
