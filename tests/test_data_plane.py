"""Which data plane is used: as told by hand, and where pyzmq cannot carry the native one."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import models
import numpy._core._multiarray_umath as extension
import pytest
import zmq
from native_driver import COMPILER

pytest.importorskip("batching._native.plane", exc_type=ImportError)

from batching import connect, runner_service

HERE = Path(__file__).resolve().parent
SCRIPT = """
import sys, threading
import zmq.backend.cython._zmq as binding
binding.__file__ = sys.argv[1]
import models
from batching import connect, runner_service
from batching.runner.native import native_plane
"""
SERVE = """
with runner_service(models.Double()) as service, connect(service.endpoint, "Double") as connected:
    print(native_plane(), sorted(thread.name for thread in threading.enumerate()))
    print(service.run_batch([1]), connected.run_batch([2]))
"""


def run(script: str, library: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script in an interpreter of its own, which takes the library for pyzmq's."""
    return subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT + script, str(library)],
        env={**os.environ, "PYTHONPATH": str(HERE), "BATCHING_DATA_PLANE": "", **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.slow
def test_without_libzmqs_functions_services_and_connections_take_the_plain_plane() -> None:
    done = run(SERVE, extension.__file__)
    assert done.returncode == 0, done.stderr
    plane, answers = done.stdout.splitlines()
    assert plane.startswith("False ")
    assert "batching-Double'" in plane
    assert "batching-Double-events'" not in plane  # the native dispatcher's second thread
    assert answers == "[2] [4]"


@pytest.mark.slow
def test_the_native_plane_asked_for_by_hand_raises_with_pyzmqs_version_where_it_cannot_be_had() -> None:
    done = run(SERVE, extension.__file__, BATCHING_DATA_PLANE="native")
    assert done.returncode == 1
    version = re.escape(f"pyzmq {zmq.__version__} (libzmq {zmq.zmq_version()})")
    assert re.search(
        rf"ImportError: {version} has no usable symbols .*: zmq_version; the plain one works", done.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_the_one_function_that_a_libzmq_lacks_is_named(tmp_path: Path) -> None:
    names = re.findall(r'{"(zmq_\w+)"', (HERE.parent / "_native" / "zmqapi.c").read_text())
    assert "zmq_msg_send" in names
    source, library = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names if name != "zmq_msg_send"))
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", library, source], check=True)
    done = run(SERVE, library, BATCHING_DATA_PLANE="native")
    assert "no usable symbols for the native data plane: zmq_msg_send; the plain one works" in done.stderr


@pytest.mark.parametrize("start", [
    lambda: runner_service(models.Double()).start(),
    lambda: connect("ipc:///nowhere/at-all", "Double", timeout_s=0.1),
], ids=["service", "connect"])  # fmt: skip
def test_a_data_plane_that_there_is_not_is_refused_with_those_that_there_are(start, monkeypatch) -> None:
    monkeypatch.setenv("BATCHING_DATA_PLANE", "fast")
    with pytest.raises(ValueError, match="BATCHING_DATA_PLANE must be native or plain, got 'fast'"):
        start()


def local_send_bytes(path: str) -> list[int]:
    """The send buffers of this process's ends of connections over the socket file."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            one = socket.socket(fileno=os.dup(int(number)))
            with one:
                names = (one.getsockname(), one.getpeername())
                if path in names:
                    found.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are found in /proc")
def test_both_ends_of_a_local_connection_take_in_more_than_a_batch_at_once() -> None:
    with socket.socket(socket.AF_UNIX) as fresh:
        usual = fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    with runner_service(models.Double()) as service, connect(service.endpoint, "Double") as connected:
        assert connected.run_batch([2]) == [4]
        sizes = local_send_bytes(service.endpoint.removeprefix("ipc://"))
    assert len(sizes) >= 3  # the service's to its worker and its client, and the client's
    assert min(sizes) > usual
