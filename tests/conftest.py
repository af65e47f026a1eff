"""What every test shares: the helpers' folder on the path, and a look at what was left behind."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# For `from fakes import ...`. Workers get this path too, and so find the classes of models.py.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A test that starts a runner closes it: no thread of ours outlives it."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [t.name for t in threading.enumerate() if t not in before and t.name.startswith("batching-test")]
    assert not left
