"""What does it cost to make one batch of many payloads, and many answers of one result?

Six questions, each with what a peer or an expert does today beside it, in the same process and the same
run, in interleaved rounds; printed are medians of times, and of the rounds' own ratios.

  large arrays  64 x float32(150528) joined into a buffer that is used again and cut into rows: as views of a
                result that nobody else holds, and as copies. Beside one memcpy of the same bytes, and
                `np.concatenate` into the same buffer.
  outputs       two outputs of 64 x float32(75264), cut in the same two ways.
  small arrays  64 x float32(128) joined, and cut into rows of their own. Beside `np.stack` + `np.split`.
  frames        64 one-row frames of 10 columns of mixed dtypes. Worker: wire bytes to one DataFrame, and a
                DataFrame to wire buffers that can be cut by rows. Caller: a frame to wire bytes, and a row of
                the answer back to a frame. Beside what pickle, `pd.concat` and `iloc` make of it.
  dicts         64 small dicts as list elements. Worker: the joined bytes of 64 calls to the list that the
                model gets, and a list to bytes with lengths that can be cut by rows. Caller: one dict to
                wire bytes, with all that makes a call of it, and back. Beside `pickle.loads` and
                `pickle.dumps` of one dict after the other, with no list, no joined bytes, no lengths;
                and the same with the list in between, which a model cannot do without.
  objects       the same of 64 dataclasses, which have to go through pickle here as well.

How to run: python bench/bench_payloads.py [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pickle
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batching._native.rows import BufferPool, join_arrays, split_rows
from batching.payloads import Encoded, Fixed, Var
from batching.signature import Signature

CALLERS = 64
RESULT = Path(__file__).parent / "results" / "payloads.json"


def timed(work: Callable[[], Any], repeat: int) -> float:
    """Microseconds of one run."""
    begin = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - begin) / repeat * 1e6


def compare(works: dict[str, tuple[Callable[[], Any], int]], baseline: str, rounds: int) -> dict[str, dict]:
    """Median microseconds of each, and the median of the rounds' own ratios to the baseline."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, (work, repeat) in works.items():
            times[name].append(timed(work, repeat))
    return {
        name: {
            "us": round(statistics.median(each[1:]), 2),
            f"times faster than {baseline}": round(
                statistics.median(b / a for a, b in zip(each[1:], times[baseline][1:], strict=True)), 2
            ),
        }
        for name, each in times.items()
    }


def model(x: Any) -> None: ...


def joined(calls: Sequence[Encoded]) -> list[Fixed | Var]:
    """What a dispatcher does in C: the callers' buffers, back to back."""
    buffers: list[Fixed | Var] = []
    for column in zip(*[call.buffers for call in calls], strict=True):
        data = bytearray(b"".join(bytes(buffer.data) for buffer in column))
        if isinstance(column[0], Fixed):
            buffers.append(Fixed(column[0].row_bytes, data))
        else:
            buffers.append(Var(b"".join(bytes(buffer.lengths) for buffer in column), data))
    return buffers


def large_arrays(rounds: int) -> dict[str, dict]:
    arrays = [np.random.default_rng(i).random(150_528, dtype=np.float32) for i in range(CALLERS)]
    pool = BufferPool()
    source = np.stack(arrays)
    target = np.empty_like(source)

    def join_and_view() -> None:
        join_arrays(arrays, pool.take(source.dtype, source.shape))
        # `source` stands for the model's result, which only the engine holds.
        split_rows(source, owned=True)

    def join_and_copy() -> None:
        join_arrays(arrays, pool.take(source.dtype, source.shape))
        split_rows(source)

    return compare(
        {
            "memcpy": (lambda: ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes), 1),
            "join": (lambda: join_arrays(arrays, pool.take(source.dtype, source.shape)), 1),
            "join, rows as views": (join_and_view, 1),
            "join, rows as copies": (join_and_copy, 1),
            "np.concatenate(out=)": (lambda: np.concatenate([a[None] for a in arrays], out=target), 1),
        },
        "memcpy",
        rounds,
    )


def several_outputs(rounds: int) -> dict[str, dict]:
    signature = Signature(model)
    kept = [np.random.default_rng(i).random((CALLERS, 75_264), dtype=np.float32) for i in range(2)]
    given = [array.copy() for array in kept]
    target = np.empty_like(kept[0])

    def memcpy() -> None:
        for array in kept:
            ctypes.memmove(target.ctypes.data, array.ctypes.data, array.nbytes)

    def shared() -> None:
        result = [(given.pop(), given.pop())]
        parts = signature.split_owned(result, [1] * CALLERS)
        given.extend(output.base for output in parts[0])

    works = {
        "memcpy": (memcpy, 1),
        "rows as views": (shared, 5),
        "rows as copies": (lambda: signature.split(tuple(kept), [1] * CALLERS), 1),
    }
    return compare(works, "memcpy", rounds)


def small_arrays(rounds: int) -> dict[str, dict]:
    arrays = [np.random.default_rng(i).random(128, dtype=np.float32) for i in range(CALLERS)]
    return compare(
        {
            "np.stack + np.split": (lambda: np.split(np.stack(arrays), CALLERS), 100),
            "join + rows of their own": (lambda: split_rows(join_arrays(arrays)), 500),
            "64 x np.empty": (lambda: [np.empty(128, np.float32) for _ in range(CALLERS)], 500),
        },
        "np.stack + np.split",
        rounds,
    )


def credit_frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 80, CALLERS),
            "income": rng.normal(5e4, 1e4, CALLERS),
            "score": rng.random(CALLERS),
            "debt": rng.random(CALLERS) * 1e4,
            "owner": rng.random(CALLERS) > 0.5,
            "job": pd.Categorical(rng.choice(["clerk", "smith", "nurse"], CALLERS)),
            "city": rng.choice(["Paris", "Rome", "Oslo"], CALLERS),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 1000, CALLERS), unit="D"),
            "children": pd.array(rng.integers(0, 5, CALLERS), dtype="Int64"),
            "limit": rng.normal(size=CALLERS).astype(np.float32),
        }
    )


def frames_worker(rounds: int) -> dict[str, dict]:
    signature = Signature(model)
    frames = [credit_frame().iloc[[row]] for row in range(CALLERS)]
    calls = [signature.encode(signature.describe((frame,), {}, False).payload) for frame in frames]
    buffers = joined(calls)
    pickles = [pickle.dumps(frame, 5) for frame in frames]

    def ours() -> None:
        [batch], _ = signature.decode(calls[0].key, buffers, CALLERS)
        signature.encode_result(batch, CALLERS)

    def peers() -> None:
        batch = pd.concat([pickle.loads(each) for each in pickles], ignore_index=True)
        for row in range(CALLERS):
            pickle.dumps(batch.iloc[[row]], 5)

    works = {"unpickle + concat + iloc + pickle": (peers, 1), "wire to frame and back": (ours, 20)}
    return per_row(compare(works, "unpickle + concat + iloc + pickle", rounds), CALLERS)


def frames_caller(rounds: int) -> dict[str, dict]:
    signature = Signature(model)
    frame = credit_frame().iloc[[3]]
    payload = signature.describe((frame,), {}, False).payload
    answer = signature.encode_result(frame, 1)
    pickled = pickle.dumps(frame, 5)

    def ours() -> None:
        signature.encode(signature.describe((frame,), {}, False).payload)
        signature.finish(payload, [signature.decode_result(answer.key, answer.buffers, 1)])

    def peers() -> None:
        pickle.dumps(frame, 5)
        pickle.loads(pickled)

    works = {"pickle + unpickle": (peers, 20), "frame to wire and back": (ours, 50)}
    return per_row(compare(works, "pickle + unpickle", rounds), 1)


def frames_embedded(rounds: int) -> dict[str, dict]:
    signature = Signature(model)
    frames = [credit_frame().iloc[[row]] for row in range(CALLERS)]

    def ours() -> None:
        calls = [signature.describe((frame,), {}, False) for frame in frames]
        [batch], _ = signature.join([(call.payload, 0, 1) for call in calls])
        for call, part in zip(calls, signature.split(batch, [1] * CALLERS), strict=True):
            signature.finish(call.payload, [part])

    def peers() -> None:
        batch = pd.concat(frames, ignore_index=True)
        for row in range(CALLERS):
            batch.iloc[[row]].copy()

    works = {"concat + iloc": (peers, 1), "join and cut": (ours, 5)}
    return per_row(compare(works, "concat + iloc", rounds), CALLERS)


DICTS = [{"id": i, "name": f"user{i}", "tags": ["a", "b"], "score": i / 2} for i in range(CALLERS)]


@dataclass
class Order:
    id: int
    name: str
    tags: list[str]
    score: float


def dicts_worker(rounds: int) -> dict[str, dict]:
    return elements_worker(DICTS, rounds)


def objects_worker(rounds: int) -> dict[str, dict]:
    # Of a module that a worker could import: what belongs to __main__ is cloudpickle's.
    Order.__module__ = "bench_payloads"
    sys.modules.setdefault("bench_payloads", sys.modules[__name__])
    return elements_worker([Order(**each) for each in DICTS], rounds)


def elements_worker(elements: list[Any], rounds: int) -> dict[str, dict]:
    signature = Signature(model)
    calls = [signature.encode(signature.describe((each,), {}, False).payload) for each in elements]
    buffers = joined(calls)
    pickles = [pickle.dumps(each, 5) for each in elements]

    def ours() -> None:
        [batch], _ = signature.decode(calls[0].key, buffers, CALLERS)
        signature.encode_result(batch, CALLERS)

    def one_by_one() -> None:
        for each in pickles:
            pickle.dumps(pickle.loads(each), 5)

    def with_a_list() -> None:
        batch = [pickle.loads(each) for each in pickles]
        for each in batch:
            pickle.dumps(each, 5)

    works = {
        "unpickle + pickle of each": (one_by_one, 20),
        "the same, all unpickled first": (with_a_list, 20),
        "wire to list and back": (ours, 20),
    }
    return per_row(compare(works, "unpickle + pickle of each", rounds), CALLERS)


def dicts_caller(rounds: int) -> dict[str, dict]:
    signature = Signature(model)
    payload = signature.describe((DICTS[0],), {}, False).payload
    answer = signature.encode_result(DICTS[:1], 1)
    pickled = pickle.dumps(DICTS[0], 5)

    def ours() -> None:
        signature.encode(signature.describe((DICTS[0],), {}, False).payload)
        signature.finish(payload, [signature.decode_result(answer.key, answer.buffers, 1)])

    def peers() -> None:
        pickle.dumps(DICTS[0], 5)
        pickle.loads(pickled)

    works = {"pickle + unpickle": (peers, 500), "dict to wire and back": (ours, 200)}
    return per_row(compare(works, "pickle + unpickle", rounds), 1)


def per_row(figures: dict[str, dict], rows: int) -> dict[str, dict]:
    return {name: {"us a row": round(each.pop("us") / rows, 2), **each} for name, each in figures.items()}


QUESTIONS = {
    "64 x float32(150528)": large_arrays,
    "2 outputs of 64 x float32(75264)": several_outputs,
    "64 x float32(128)": small_arrays,
    "frames, worker's side": frames_worker,
    "frames, caller's side": frames_caller,
    "frames, in one process": frames_embedded,
    "64 small dicts, worker's side": dicts_worker,
    "64 small dataclasses, worker's side": objects_worker,
    "64 small dicts, caller's side": dicts_caller,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help=f"also write {RESULT.name}")
    args = parser.parse_args()
    figures = {}
    for question, answer in QUESTIONS.items():
        figures[question] = answer(args.rounds)
        print(f"\n{question}")
        for name, each in figures[question].items():
            print(f"  {name:36s}" + "".join(f"  {value:>10} {unit}" for unit, value in each.items()))
    if args.json:
        about = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pandas": pd.__version__,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "rounds": args.rounds,
        }
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"about": about, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
