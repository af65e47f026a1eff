"""CPU, memory, threads and descriptors of processes, as Linux counts them; for the benches."""

from __future__ import annotations

import collections
import os
import platform
from contextlib import suppress
from pathlib import Path

__all__ = ["cpu_s", "descriptor_kinds", "descriptors", "machine", "memory_bytes", "threads", "workers_of"]


def cpu_s(pid: int) -> float:
    """CPU seconds that the process's living threads have used; nanoseconds where the kernel tells."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def workers_of(pid: int) -> list[int]:
    """The worker processes of the service in this process."""
    children: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        children |= {int(child) for child in (task / "children").read_text().split()}
    return sorted(child for child in children if b"worker_main" in _command_line(child))


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def descriptor_kinds(pid: int) -> dict[str, int]:
    """How many are sockets, pipes, files and so on."""
    kinds: collections.Counter[str] = collections.Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # the folder's own, which is closed by now
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            kinds["file" if name.startswith("/") else name.removeprefix("anon_inode:").partition(":")[0]] += 1
    return dict(sorted(kinds.items()))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def memory_bytes(pid: int) -> int:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, object]:
    """Where a result comes from, and what else ran there meanwhile."""
    load = round(os.getloadavg()[0], 1)
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "load_average": load}
