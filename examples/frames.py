"""One-row DataFrames with mixed dtypes: joined into one frame, answered with the caller's own index.

python examples/frames.py
"""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from batching import BatchOptions, Runner

GRADES = pd.CategoricalDtype(["A", "B", "C"], ordered=True)


class CreditLimit(Runner):
    def _run_batch(self, applicants: pd.DataFrame, factor: float = 1.0) -> pd.DataFrame:
        """applicants: n rows of income (float), since (datetime), grade (category), employed (bool)."""
        years = (pd.Timestamp("2026-01-01") - applicants["since"]).dt.days / 365
        share = applicants["grade"].map({"A": 0.5, "B": 0.3, "C": 0.1}).astype(float)
        limit = factor * applicants["income"] * share * (1 + years / 10)
        return pd.DataFrame(
            {"limit": limit.where(applicants["employed"], 0.0).round(2), "years": years.round(1)}
        )


def applicant(number: int) -> pd.DataFrame:
    row = {
        "income": [1000.0 * (number + 1)],
        "since": pd.to_datetime([f"20{number % 20:02d}-06-01"]),
        "grade": pd.Series(["ABC"[number % 3]], dtype=GRADES),
        "employed": [number % 5 != 0],
    }
    return pd.DataFrame(row).set_index(pd.Index([f"applicant-{number}"]))


def main() -> None:
    # `factor` is one value for a whole batch, never a column: calls with different factors are not joined.
    with CreditLimit(options=BatchOptions(static_args=("factor",))) as runner, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: runner.run(applicant(n), factor=1.0 + n % 2), range(64)))
        print(pd.concat(answers).head(6))
        statistics = runner.statistics()
        print(f"{statistics.answered} calls in {statistics.batches} batches")


if __name__ == "__main__":
    main()
