"""What every test shares: the helpers' folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

# For `from fakes import ...`. Workers get this path too, and so find the classes of models.py.
sys.path.insert(0, str(Path(__file__).parent))
