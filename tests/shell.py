"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fakes import PATIENCE_S

COMMAND = [sys.executable, "-P", "-c", "from batching.runner.cli import main; main()"]
TESTS = str(Path(__file__).parent)


class Shell:
    """A `batching` command that runs in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": TESTS},
        )  # fmt: skip

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def error_line(self) -> str:
        return self.process.stderr.readline().strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """The exit status, and what was written to stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
