"""The first lines of a worker process, run as a script by its path.

Only the standard library until the parent's `sys.path` is here: with `python -P` and a
script's path nothing in the working directory can shadow a module, and no `__main__`
guard is needed, because the parent's main module is never imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys


def read_exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            os._exit(0)  # the parent is gone already
        data += piece
    return bytes(data)


def main() -> None:
    # Ctrl-C in a terminal reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    life_fd, report_fd = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(life_fd, False)
    os.set_inheritable(report_fd, False)
    head_bytes = int.from_bytes(read_exactly(life_fd, 8), "little")
    boot = json.loads(read_exactly(life_fd, head_bytes))
    recipe = read_exactly(life_fd, boot["recipe_bytes"])
    sys.path[:] = boot["sys_path"]
    sys.argv[:] = boot["argv"]

    from batching.runner.worker import supervised

    supervised(boot, recipe, life_fd, report_fd)


if __name__ == "__main__":
    main()
