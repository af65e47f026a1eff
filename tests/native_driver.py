"""Compiles the C drivers of tests/native, with the sources of the core that they drive, under sanitizers.

From a shell, the threads of the native plane, longer than the tests run them:

    python tests/native_driver.py thread SEED LIVES CALLS
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCHEDULER = [
    "_native/containers.c",
    "_native/scheduler.c",
    "_native/scheduler_batch.c",
    "_native/scheduler_check.c",
    "_native/scheduler_late.c",
    "_native/scheduler_queue.c",
    "_native/scheduler_releases.c",
]
LEARNED = [
    "_native/arrivals.c",
    "_native/cost.c",
    "_native/policy.c",
    "_native/sizing.c",
    "_native/spacing.c",
    "_native/waiting.c",
]
PLANE = [
    "_native/ledger.c",
    "_native/message.c",
    "_native/plane.c",
    "_native/plane_calls.c",
    "_native/plane_messages.c",
    "_native/plane_peers.c",
    "_native/plane_questions.c",
    "_native/plane_queues.c",
    "_native/plane_workers.c",
    "_native/slices.c",
    "_native/trust.c",
    "_native/wake.c",
    "_native/wire.c",
    "_native/zmqapi.c",
]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = ["-std=gnu11", "-g", "-O1", "-D_GNU_SOURCE=", "-DBT_DEBUG_COUNTERS", "-fno-sanitize-recover=all"]
# libzmq is not instrumented, and loses blocks of its own when sockets close.
ENVIRONMENT = {
    **os.environ,
    "LSAN_OPTIONS": f"suppressions={ROOT / 'tests/native/leaks.supp'}:print_suppressions=0",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
}


def compile_driver(
    target: Path, sources: list[str], *, sanitizer: str = "address,undefined", extra: tuple[str, ...] = ()
) -> None:
    include = ["-I", str(ROOT / "_native"), "-include", str(ROOT / "tests/native/fuzz_memory.h")]
    files = [str(ROOT / source) for source in sources]
    casts = ("-fsanitize=float-cast-overflow",) if "undefined" in sanitizer else ()
    flags = [*FLAGS, f"-fsanitize={sanitizer}", *casts, *include]
    command = [str(COMPILER), *flags, *files, "-o", str(target), *extra, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode and "sanitize" in done.stderr + done.stdout:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr


def compile_plane_driver(target: Path, sanitizer: str) -> None:
    """With pyzmq's libzmq, whose extension module wants the interpreter's symbols."""
    folder, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("pyzmq cannot be loaded by a C program where Python has no shared library")
    library = Path(pytest.importorskip("zmq.backend.cython._zmq").__file__)
    extra = (
        f'-DLIBRARY="{library}"', "-ldl", "-lpthread", f"-L{folder}", f"-Wl,-rpath,{folder},--no-as-needed",
        f"-lpython{version}",
    )  # fmt: skip
    sources = [*SCHEDULER, *LEARNED, *PLANE, "tests/native/drive_plane.c"]
    compile_driver(target, sources, sanitizer=sanitizer, extra=extra)


def main() -> int:
    sanitizer, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder, "drive_plane")
        compile_plane_driver(driver, sanitizer)
        return subprocess.run([driver, *arguments], env=ENVIRONMENT).returncode


if __name__ == "__main__":
    sys.exit(main())
