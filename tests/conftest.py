"""What every test shares: the helpers' folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# For `from fakes import ...`. Workers get this path too, and so find the classes of models.py.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """The command line adds the working directory to `sys.path`, where our source folder would then
    shadow the installed package in every worker that a later test starts."""
    monkeypatch.setattr(sys, "path", [*sys.path])
