from typing import Any, Literal, NamedTuple, final

class Admission(NamedTuple):
    verdict: Literal["admitted", "refused_queue", "refused_late", "refused_size", "refused_memory"]
    id: int
    predicted_ns: int | None

class Decision(NamedTuple):
    action: Literal["idle", "wait", "run"]
    until_ns: int | None
    batch: int
    group: int
    rows: int
    padded_rows: int
    reason: str | None
    parts: list[tuple[int, int, int, int]]

class Release(NamedTuple):
    number: int
    released_ns: int
    reason: str
    calls: int
    rows: int
    padded_rows: int
    idle_slots: int
    held_ns: int
    predicted_ns: int | None
    took_ns: int | None
    how: Literal["running", "ok", "raised", "died", "invalid", "unrun"]

class Settled(NamedTuple):
    id: int
    tag: int
    first_row: int
    rows: int
    batch_offset: int
    outcome: Literal["part", "answered", "rerun", "failed", "lost", "broken", "gone", "expired"]

def live_objects() -> int: ...
def numbers_at(address: int) -> dict[str, Any]: ...
def releases_at(address: int, count: int) -> list[Release]: ...

@final
class Scheduler:
    def __new__(
        cls,
        *,
        max_batch_rows: int = 128,
        max_queue_rows: int = 65_536,
        isolate_errors: bool = True,
        one_call_a_batch: bool = False,
        rule: Literal["learned", "greedy", "fixed"] = "learned",
        objective: Literal["latency", "throughput"] = "latency",
        max_wait_ns: int | None = None,
        fixed_wait_ns: int = 0,
        fixed_rows: int | None = None,
        allowed_rows: tuple[int, ...] = (),
    ) -> Scheduler: ...
    def set_options(self, **changes: Any) -> None: ...
    def admit(
        self,
        now_ns: int,
        rows: int,
        group: int = 0,
        deadline_ns: int | None = None,
        client: int = 0,
        tag: int = 0,
    ) -> Admission: ...
    def count_refused(self, calls: int) -> None: ...
    def cancel(self, id: int) -> bool: ...
    def decide(self, now_ns: int, idle_slots: int = 1, total_slots: int = 1) -> Decision: ...
    def expired(self) -> list[Settled]: ...
    def finished(
        self,
        batch: int,
        now_ns: int,
        how: Literal["ok", "raised", "died", "invalid", "unrun", "unsent"] = "ok",
    ) -> list[Settled]: ...
    def statistics(self) -> dict[str, Any]: ...
    def recent_releases(self) -> list[Release]: ...
    def check(self) -> None: ...
    @property
    def _address(self) -> int: ...
    def close(self) -> None: ...
