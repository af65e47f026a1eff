"""The command line: `batching serve` and `batching worker`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import click

from .._native.calls import ItemHandle
from ..errors import BatchingError
from .endpoints import allows_pickle, checked
from .service import runner_service
from .signals import FORCED, on_request_to_leave
from .worker import work

__all__ = ["main"]


@click.group()
@click.version_option(package_name="adaptive-batching")
def main() -> None:
    """Many concurrent calls in, few batched calls out."""


@main.command()
@click.argument("target", metavar="MODULE:ATTRIBUTE")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Worker processes.")
@click.option("--bind", metavar="ENDPOINT", help="ipc://PATH or tcp://127.0.0.1:PORT; else a private socket.")
@click.option("--start-timeout", type=float, default=60.0, show_default=True, help="Seconds for each _setup.")
def serve(target: str, workers: int, bind: str | None, start_timeout: float) -> None:
    """Serve a runner from worker processes until SIGTERM or Ctrl-C.

    MODULE:ATTRIBUTE is a Runner or SimpleRunner: an instance, or a class that is made without
    arguments. The first line printed is the endpoint. The first signal answers what was
    accepted and then exits with 0; a second one exits at once.
    """
    runner = _load(target)
    asked = _Asked()
    try:
        service = runner_service(runner, workers=workers, endpoint=bind, start_timeout_s=start_timeout)
        with asked.watched(), service:
            click.echo(service.endpoint)
            sys.stdout.flush()
            click.echo(f"serving {service.name!r} with {workers} workers", err=True)
            asked.wait()
            click.echo("answering what was accepted", err=True)
    except (BatchingError, TypeError, ValueError) as error:
        raise click.ClickException(_explained(error)) from error


@main.command()
@click.argument("target", metavar="MODULE:ATTRIBUTE")
@click.option(
    "--connect", "endpoint", metavar="ENDPOINT", required=True, help="What `batching serve` printed."
)
def worker(target: str, endpoint: str) -> None:
    """Start one more worker for a service, here or wherever it can be reached from.

    It leaves when the service stops, and on SIGTERM or Ctrl-C, when it has answered what it was
    given; a second signal ends it at once. When the connection is lost it dials again, with pauses of
    up to ten seconds, so that a service that is back at its endpoint has its workers back.
    """
    try:
        endpoint = checked(endpoint)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    runner = _load(target)

    def ready(leave: Callable[[], None]) -> None:
        # Not before: a `_setup` may be interrupted as usual, and a batch must not be.
        on_request_to_leave(leave)
        click.echo(f"a worker of {runner.name!r} is ready", err=True)

    refusal = work(
        runner,
        endpoint,
        allow_pickle=allows_pickle(endpoint),
        credits=runner.options.concurrency,
        redials=True,
        ready=ready,
    )
    if refusal:
        raise click.ClickException(refusal)


class _Asked:
    """Whether a signal asked for the end. The library itself installs no handler; this does."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._count = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        signals = (signal.SIGTERM, signal.SIGINT)
        before: list[Callable[[int, FrameType | None], Any] | int | None] = [
            signal.signal(number, self._note) for number in signals
        ]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def wait(self) -> None:
        while not self._count:
            os.read(self._reader, 1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            # Whatever is still going on: workers end with this process.
            os._exit(FORCED)
        os.write(self._writer, b"\0")


def _load(target: str) -> Any:
    """The runner that MODULE:ATTRIBUTE names. The working directory is looked at too."""
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise click.ClickException(f"{target!r} is not MODULE:ATTRIBUTE")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise click.ClickException(f"{target!r} cannot be loaded: {error}") from error
    if isinstance(found, type):
        found = found()
    if not isinstance(found, ItemHandle) or not hasattr(found, "_hook"):
        raise click.ClickException(f"{target!r} is a {type(found).__name__}, not a Runner or SimpleRunner")
    return found


def _explained(error: BaseException) -> str:
    trace = getattr(error, "traceback", "")
    return f"{error}\n\n{trace}" if trace else str(error)


def _add_simulation() -> None:
    # Its commands need the simulator, which the rest does not load.
    if importlib.util.find_spec(f"{__package__}.cli_simulate") is not None:
        register = importlib.import_module(f"{__package__}.cli_simulate").register
        register(main)


_add_simulation()
