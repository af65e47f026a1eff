"""Token ids of different length: padded to one array, short and long texts in batches of their own.

python examples/tokens.py
"""

import asyncio

import numpy as np

from batching import Runner
from batching.payloads import Pad

VOCABULARY, WIDTH = 1000, 16
PADDING = 0


class Embed(Runner):
    """The mean of the embeddings of a text's tokens."""

    pad = Pad(value=PADDING, lengths="lengths")

    def _setup(self) -> None:
        self.table = np.random.default_rng(0).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
        self.table[PADDING] = 0
        self.padded = self.real = 0

    def group_by(self, tokens: np.ndarray) -> int:
        return len(tokens).bit_length()  # a text never pays for one that is more than twice as long

    def _run_batch(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """tokens: (n, longest) int64, lengths: (n,) int64 -> (n, WIDTH) float32"""
        self.padded, self.real = self.padded + tokens.size, self.real + int(lengths.sum())
        return self.table[tokens].sum(axis=1) / lengths[:, None].astype(np.float32)


async def main() -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(1, VOCABULARY, size=int(length)) for length in rng.geometric(0.02, size=500)]
    async with Embed() as embed:
        vectors = await asyncio.gather(*(embed.async_run(text) for text in texts))
        wanted = np.stack([embed.table[text].mean(axis=0) for text in texts])
        print("largest difference from one by one:", f"{np.abs(wanted - vectors).max():.0e}")
        statistics = embed.statistics()
        print(
            f"{statistics.answered} texts of {statistics.groups} bucket sizes in {statistics.batches} batches"
        )
        print(f"{embed.real / embed.padded:.0%} of what the model computed was no padding")


if __name__ == "__main__":
    asyncio.run(main())
