"""Every example runs on its own, prints something, complains of nothing, and stays short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str, timeout_s: float = 60) -> str:
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_iris_example_classifies_in_this_process_and_in_others() -> None:
    pytest.importorskip("sklearn")
    output = run("iris.py")
    assert "150 coroutines at once: 97% right" in output
    assert "the same in 4 processes: 97% right" in output


@pytest.mark.slow
def test_frames_example_gives_each_caller_its_own_index_back() -> None:
    output = run("frames.py")
    assert "applicant-0" in output
    assert "64 calls in" in output


@pytest.mark.slow
def test_text_example_fails_one_caller_alone() -> None:
    output = run("text.py")
    assert "('sea', 2)" in output
    assert "refused: no word in '?'" in output
    assert "[('sea', 2), ('queue', 2), ('be', 2)]" in output


@pytest.mark.slow
def test_tokens_example_agrees_with_one_text_at_a_time() -> None:
    output = run("tokens.py")
    assert re.search(r"one by one: (0e\+00|\de-0[6-9])$", output, re.M)
    assert "500 texts of" in output


@pytest.mark.slow
def test_demo_checks_every_answer_and_prints_both_rows() -> None:
    pytest.importorskip("sklearn")
    output = run("demo.py", "--seconds", "1.5", "--callers", "8")
    assert "one by one" in output
    assert "batched" in output
    assert "every answer equals the model's own" in output


# The demo is a program rather than a page to read.
@pytest.mark.parametrize(
    "path",
    [path for path in sorted(EXAMPLES.glob("*.py")) if path.name != "demo.py"],
    ids=lambda path: path.name,
)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
