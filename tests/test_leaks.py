"""What must hold in a process as a whole: it ends, says nothing, and leaves nothing behind.

Each script of `tests/isolated` runs in a fresh interpreter. It checks what it can see itself, and must
end by itself, with status 0 and without a word, also from threads and from the interpreter's shutdown.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parent / "isolated").glob("*.py"))


@pytest.mark.slow
@pytest.mark.leaks
@pytest.mark.parametrize("debug", ["", "1"], ids=["plain", "asyncio-debug"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_process_ends_silently(script: Path, debug: str) -> None:
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONASYNCIODEBUG": debug,
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
