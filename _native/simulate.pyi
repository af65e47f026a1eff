from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .scheduler import Scheduler

@final
class Agenda:
    def __new__(cls) -> Agenda: ...

@final
class Simulation:
    def __init__(
        self,
        scheduler: Scheduler,
        *,
        slots: int,
        budget_ns: int | None,
        rows: NDArray[np.int64],
        cost: Callable[[int, np.random.Generator], Any],
        rng: np.random.Generator,
        arrivals_ns: NDArray[np.int64] | None = None,
        callers: int = 0,
        think: Callable[[np.random.Generator], Any] | None = None,
    ) -> None: ...
    def run(self) -> tuple[NDArray[np.float64], NDArray[np.int64], list[int], list[int], int]: ...
