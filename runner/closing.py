"""Closing: `with` and `async with` for handles whose end may take a while."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """For who has a `close` that blocks."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        # In a thread: what is out may need turns of this very loop.
        await asyncio.get_running_loop().run_in_executor(None, self.close)
