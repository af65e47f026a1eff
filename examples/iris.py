"""A scikit-learn classifier: batched in this process, then in four worker processes.

pip install adaptive-batching scikit-learn joblib
python examples/iris.py
"""

import asyncio
import tempfile
from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from batching import Runner, runner_service


class Iris(Runner):
    def __init__(self, path: str) -> None:
        super().__init__("iris")
        self.path = path

    def _setup(self) -> None:  # once per worker, before its first batch
        self.model = joblib.load(self.path)

    def _run_batch(self, x: np.ndarray) -> np.ndarray:  # x: (n, 4) -> (n,)
        return self.model.predict(x)


async def main() -> None:
    flowers, species = load_iris(return_X_y=True)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "iris.joblib")
        joblib.dump(LogisticRegression(max_iter=1000).fit(flowers, species), path)

        with Iris(path) as iris:
            print("one flower, from a thread:", iris.run(flowers[0]))
            answers = await asyncio.gather(*(iris.async_run(flower) for flower in flowers))
            print(f"{len(answers)} coroutines at once: {np.mean(answers == species):.0%} right")
            print("batches:", iris.statistics().batches)

        with runner_service(Iris(path), workers=4) as service:
            answers = await asyncio.gather(*(service.async_run(flower) for flower in flowers))
            print(f"the same in 4 processes: {np.mean(answers == species):.0%} right")


if __name__ == "__main__":
    asyncio.run(main())
