"""Planning from the command line: what it reads, what it says, and what it says of a mistake."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from batching.runner.cli_simulate import profile, simulate_command
from batching.simulation_inputs import read_cost, read_trace


def trace(calls=300, rate=3000.0, seed=3):
    return np.round(np.cumsum(np.random.default_rng(seed).exponential(1 / rate, calls)), 9)


@pytest.mark.parametrize(
    ("text", "rows", "seconds"),
    [
        ("1ms + 20us*n", 10, 0.0012),
        ("5ms", 3, 0.005),
        ("2e2ns*n+1s", 10, 1.000002),
        ("1.5ms*n", 2, 0.003),
        (".5ms", 1, 0.0005),
    ],
)
def test_a_cost_is_read_as_it_is_written(text, rows, seconds):
    assert read_cost(text)(rows, np.random.default_rng(0)) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "__import__('os')", "1ms - 1us*n", "1 parsec"])
def test_what_is_no_cost_is_refused(text):
    with pytest.raises(ValueError, match="is neither"):
        read_cost(text)


def test_measured_costs_are_read_and_interpolated(tmp_path):
    path = tmp_path / "cost.csv"
    path.write_text("rows,seconds\n1,0.001\n1,0.001\n4,0.004\n8,0.008\n")
    measured = read_cost(str(path))
    rng = np.random.default_rng(0)
    assert [measured(rows, rng) for rows in (1, 2, 8, 16)] == pytest.approx([0.001, 0.002, 0.008, 0.016])


def test_a_trace_is_sorted_and_starts_at_zero(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("seconds,rows\n12.5,2\n12.0,1\n")
    times, rows = read_trace(path)
    assert times.tolist() == [0.0, 0.5]
    assert rows.tolist() == [1, 2]


def test_a_line_that_is_not_numbers_is_named(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("0.1\nsoon\n")
    with pytest.raises(ValueError, match="line 2: 'soon'"):
        read_trace(path)


def test_the_command_line_says_what_to_expect(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(str(time) for time in trace()))
    done = CliRunner().invoke(
        simulate_command,
        [str(path), "--cost", "1ms + 500us*n", "--max-batch-size", "8", "--max-latency-ms", "50"],
    )
    assert done.exit_code == 0, done.output
    assert "300 calls" in done.output
    assert "engine" in done.output
    assert "greedy" in done.output


def test_the_command_line_explains_a_cost_that_it_does_not_understand(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("0\n1\n")
    done = CliRunner().invoke(simulate_command, [str(path), "--cost", "cheap"])
    assert done.exit_code == 1
    assert "'cheap'" in done.output


@pytest.mark.slow
def test_the_command_line_profiles_a_runner_and_plots_what_its_cost_comes_to(tmp_path):
    pytest.importorskip("matplotlib", reason="a picture needs the group plot")
    names = ("x.npy", "cost.csv", "trace.csv", "out.png")
    rows, costs, trace_csv, picture = (tmp_path / name for name in names)
    np.save(rows, np.zeros((4, 8), dtype=np.float32))
    np.savetxt(trace_csv, trace(calls=200))
    profiled = CliRunner().invoke(
        profile,
        ["models:double", "--input", str(rows), "--sizes", "1,8", "--repeat", "2", "--output", str(costs)],
    )
    assert profiled.exit_code == 0, profiled.output
    lines = costs.read_text().splitlines()
    assert lines[0] == "rows,seconds"
    assert sorted({line.split(",")[0] for line in lines[1:]}) == ["1", "8"]
    arguments = [str(trace_csv), "--cost", str(costs), "--plot", str(picture)]
    simulated = CliRunner().invoke(simulate_command, arguments)
    assert simulated.exit_code == 0, simulated.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def written(tmp_path):
    """A function that writes a text to a file of this name and returns its path as text."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("lines", "cost", "text"),
    [
        ("0\nnan\n", "1ms", "line 2: 'nan' must be finite"),
        ("0,1\n1,-2\n", "1ms", "a call has 0, 1, 2, ... rows, got -2"),
        ("0,1\n1,2.5\n", "1ms", "a call has 0, 1, 2, ... rows, got 2.5"),
        ("0\n1\n", "0,0.001\n", "a batch has 1, 2, ... rows and takes 0 s or more, got 0,0.001"),
        ("0\n1\n", "1,-0.001\n", "a batch has 1, 2, ... rows and takes 0 s or more, got 1,-0.001"),
    ],
)
def test_a_file_that_makes_no_sense_is_explained_in_a_line(written, lines, cost, text):
    if "," in cost:
        cost = written("cost.csv", cost)
    done = CliRunner().invoke(simulate_command, [written("trace.csv", lines), "--cost", cost])
    assert done.exit_code == 1
    assert text in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_picture_that_cannot_be_written_is_explained_in_a_line(written, tmp_path):
    pytest.importorskip("matplotlib", reason="a picture needs the group plot")
    arguments = [written("trace.csv", "0\n1\n"), "--cost", "1ms", "--plot", str(tmp_path / "picture.unknown")]
    done = CliRunner().invoke(simulate_command, arguments)
    assert done.exit_code == 1
    assert "unknown" in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_budget_below_the_cost_of_one_row_is_said_with_both_numbers(written):
    calls = written("trace.csv", "0\n1\n")
    said = "a batch of one row takes 3 ms, which is more than --max-latency-ms, 2"
    for budget, expected in (("2", True), ("4", False)):
        arguments = [calls, "--cost", "2ms + 1ms*n", "--max-latency-ms", budget]
        done = CliRunner().invoke(simulate_command, arguments)
        assert done.exit_code == 0, done.output
        assert (said in done.output) == expected


def test_columns_stay_apart_when_calls_take_seconds(written):
    calls = written("trace.csv", "\n".join(["0"] * 200))
    done = CliRunner().invoke(simulate_command, [calls, "--cost", "1s*n", "--max-batch-size", "1"])
    engine = next(line for line in done.output.splitlines() if line.startswith("engine"))
    assert engine.split()[1:9:2] == ["100500", "100500", "180100", "198010"]


def test_a_runner_whose_hooks_are_coroutines_is_profiled(written, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 8)))
    costs = tmp_path / "cost.csv"
    arguments = ["--input", str(tmp_path / "x.npy"), "--sizes", "3", "--repeat", "1", "--output", str(costs)]
    done = CliRunner().invoke(profile, ["models:AsyncDouble", *arguments])
    assert done.exit_code == 0, done.output
    assert costs.read_text().splitlines()[1].startswith("3,")


@pytest.mark.parametrize(
    ("target", "name", "output", "text"),
    [
        ("models:Greet", "x.npy", "cost.csv", "is a Greet: only a Runner has batches"),
        ("models:double", "text", "cost.csv", "is no .npy file of numbers"),
        ("models:double", "x.npz", "cost.csv", "is no .npy file of numbers"),
        ("models:double", "none.npy", "cost.csv", "holds no rows: its shape is (0, 8)"),
        ("models:double", "x.npy", "nowhere/cost.csv", "nowhere"),
    ],
)
def test_a_mistake_in_profiling_is_explained_in_a_line(tmp_path, target, name, output, text):
    np.save(tmp_path / "x.npy", np.zeros((4, 8)))
    np.save(tmp_path / "none.npy", np.zeros((0, 8)))
    np.savez(tmp_path / "x.npz", np.zeros((4, 8)))
    (tmp_path / "text").write_text("1,2\n")
    arguments = [target, "--input", str(tmp_path / name), "--output", str(tmp_path / output), "--repeat", "1"]
    done = CliRunner().invoke(profile, arguments)
    assert done.exit_code == 1
    assert text in done.output
    assert isinstance(done.exception, SystemExit)
