"""Any other object is one element of a list: here, sentences, with an error for one caller alone.

python examples/text.py
"""

import asyncio
import re
from collections import Counter

from batching import Runner

STOP_WORDS = {"a", "and", "in", "is", "of", "the", "to"}


class Keywords(Runner):
    """The most frequent word of each text, and how often it occurs."""

    def _run_batch(self, texts: list[str]) -> list[tuple[str, int] | Exception]:
        return [self._keyword(text) for text in texts]

    def _keyword(self, text: str) -> tuple[str, int] | Exception:
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in STOP_WORDS]
        # An exception in a row is raised to the caller of that row; its neighbours get their answers.
        return Counter(words).most_common(1)[0] if words else ValueError(f"no word in {text!r}")


TEXTS = [
    "The sea, the sea, and the wind",
    "A queue is a line of callers; a batch is a part of the queue",
    "To be and to be in it",
    "...",
]


async def main() -> None:
    async with Keywords() as runner:
        calls = (runner.async_run(text) for text in TEXTS)
        for text, answer in zip(TEXTS, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            print(f"{text!r}: {answer!r}")
        try:
            await runner.async_run("?")
        except ValueError as error:
            print("refused:", error)
        print(await runner.async_run_batch(TEXTS[:3]))


if __name__ == "__main__":
    asyncio.run(main())
