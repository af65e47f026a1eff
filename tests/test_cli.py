"""The command line: serve, worker, and what signals do."""

from __future__ import annotations

import signal
import textwrap

import pytest
from click.testing import CliRunner
from fakes import Caller, wait_until
from scripted import Script, is_alive, script
from shell import Shell

from batching import ServiceUnreachable, connect
from batching.runner.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


@pytest.fixture
def test(tmp_path):
    with script(tmp_path) as own:
        (tmp_path / "served.py").write_text(
            textwrap.dedent(f"""
            from batching import Runner
            from scripted import Scripted
            model = Scripted({own.path!r})
            class Broken(Runner):
                def _setup(self):
                    raise OSError("no file iris.joblib")
                def _run_batch(self, x):
                    return x
            number = 3
        """)
        )
        yield own


def test_serve_prints_the_endpoint_and_drains_on_sigterm(tmp_path, test: Script):
    with (
        Shell(tmp_path, "serve", "served:model", "--workers", "2") as shell,
        connect(shell.line(), "Scripted", timeout_s=1) as handle,
    ):
        assert handle.run("free") == "free"
        call = Caller(handle.run, 1)
        batch = test.expect_batch()
        shell.signal(signal.SIGTERM)
        assert "serving 'Scripted' with 2 workers" in shell.error_line()
        assert "answering what was accepted" in shell.error_line()
        batch.echo()
        assert call.result() == 1
        assert shell.end() == (0, "")
        assert not is_alive(batch.pid)
        with pytest.raises(ServiceUnreachable):
            handle.run("free")


def test_a_second_signal_forces_the_end(tmp_path, test: Script):
    with Shell(tmp_path, "serve", "served:model") as shell, connect(shell.line(), "Scripted") as handle:
        call = Caller(handle.run, 1)
        batch = test.expect_batch()
        shell.signal(signal.SIGINT)
        shell.error_line()
        shell.error_line()
        shell.signal(signal.SIGINT)
        assert shell.end()[0] == 130
        with pytest.raises(ServiceUnreachable):
            call.result()
        wait_until(lambda: not is_alive(batch.pid), "the end of the worker")


def test_bind_names_the_endpoint(tmp_path, test: Script):
    with Shell(tmp_path, "serve", "served:model", "--bind", f"ipc://{tmp_path}/here") as shell:
        assert shell.line() == f"ipc://{tmp_path}/here"
        shell.signal(signal.SIGTERM)
        assert shell.end()[0] == 0


def test_a_setup_that_raises_is_told_with_its_traceback(tmp_path, test: Script):
    with Shell(tmp_path, "serve", "served:Broken") as shell:
        status, errors = shell.end()
    assert status == 1
    assert "_setup raised OSError: no file iris.joblib" in errors
    assert "served.py" in errors


@pytest.mark.parametrize("end", ["leave", "stop"])
def test_a_worker_from_the_shell_takes_batches_and_leaves_after_the_one_at_hand(tmp_path, test: Script, end):
    with Shell(tmp_path, "serve", "served:model") as service:
        endpoint = service.line()
        with (
            Shell(tmp_path, "worker", "served:model", "--connect", endpoint) as worker,
            connect(endpoint, "Scripted") as handle,
        ):
            assert "a worker of 'Scripted' is ready" in worker.error_line()
            wait_until(lambda: handle.statistics().workers_ready == 2, "the second worker")
            calls, batches = [], []
            for i in range(2):  # one after the other, so that they are not joined
                calls.append(Caller(handle.run, i))
                batches.append(test.expect_batch())
            pids = [batch.pid for batch in batches]
            assert worker.process.pid in pids
            if end == "leave":
                worker.signal(signal.SIGTERM)
            for batch in batches:
                batch.echo()
            assert [call.result() for call in calls] == [0, 1]
            if end == "stop":
                service.signal(signal.SIGTERM)
            assert worker.end()[0] == 0
            if end == "leave":
                wait_until(lambda: handle.statistics().workers_ready == 1, "its leave")
                assert handle.run("free") == "free"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve", "nocolon"], "'nocolon' is not MODULE:ATTRIBUTE"),
        (["serve", "nomodule_here:x"], "cannot be loaded: No module named 'nomodule_here'"),
        (["serve", "models:Nothing"], "'models:Nothing' cannot be loaded"),
        (["serve", "models:np"], "is a module, not a Runner or SimpleRunner"),
        (["serve", "models:Double", "--bind", "tcp://0.0.0.0:1"], "tcp beyond loopback needs keys"),
        (["worker", "models:Double", "--connect", "udp://x"], "'udp://x'"),
        (["serve", "models:Double", "--workers", "0"], "0 is not in the range"),
    ],
)
def test_a_mistake_is_explained_in_a_line(arguments, text):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert text in result.output
    assert "Traceback" not in result.output
