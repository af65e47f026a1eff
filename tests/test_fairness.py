"""Clients of one process: each has its turns, wherever the runner runs."""

from __future__ import annotations

import asyncio
import pickle

import models
import numpy as np
import pytest

from batching import SimpleRunner, connect, runner_service


class Echo(SimpleRunner):
    def _run(self, value):
        return value


@pytest.fixture(params=["embedded", "service", "connected"])
def handle(request):
    if request.param == "embedded":
        with models.Numbered() as runner:
            yield runner
        return
    with runner_service(models.Numbered()) as service:
        if request.param == "service":
            yield service
            return
        with connect(service.endpoint, "Numbered") as connected:
            yield connected


def test_a_client_that_is_named_does_not_wait_behind_all_calls_of_the_process(handle):
    async def main():
        row = np.zeros(1, np.float32)
        mine = [handle.async_run(row) for _ in range(12)]
        theirs = [
            handle.client(("peer", 7)).async_run(row),
            handle.client("other").async_run_batch(row[None]),
        ]
        return await asyncio.gather(*mine, *theirs)

    numbers = [int(np.ravel(number)[0]) for number in asyncio.run(main())]
    assert max(numbers[12:]) < max(numbers[:12])


def test_a_client_makes_every_kind_of_call_and_may_be_asked_for_another(handle):
    client = handle.client("a").client("b")
    row = np.zeros((1, 1), np.float32)
    assert client.run(row[0]) >= 1
    assert len(client.run_batch(row)) == 1
    with pytest.raises(TypeError, match="unhashable"):
        handle.client([])
    with pytest.raises(TypeError):
        pickle.dumps(client)


def test_a_runner_of_single_items_has_clients_of_single_calls():
    with Echo() as runner:
        client = runner.client(1)
        assert client.run("x") == "x"
        assert not hasattr(client, "run_batch")
