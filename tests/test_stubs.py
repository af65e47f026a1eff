"""The stubs of the native modules say what the modules hold."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IS_INSTALLED = "site-packages" in (importlib.util.find_spec("batching").origin or "")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy, which brings stubtest, is missing"
)
@pytest.mark.skipif(
    not IS_INSTALLED, reason="the import hook of an editable install is invisible to stubtest"
)
def test_stubs_agree_with_the_installed_native_modules(tmp_path: Path) -> None:
    # From an empty folder: here, the source folder `batching` would shadow the installed package.
    command = [sys.executable, "-P", "-m", "mypy.stubtest"]
    config = ["--mypy-config-file", str(ROOT / "pyproject.toml")]
    config += ["--allowlist", str(ROOT / "tests" / "stubtest.allowlist"), "--ignore-unused-allowlist"]
    done = subprocess.run(
        [*command, *config, "batching._native"], cwd=tmp_path, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
