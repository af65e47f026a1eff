"""A lower floor never imports an upper one: `_native` < `batching` < `runner`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"_native": "batching._native", "batching": "batching", "runner": "batching.runner"}
# The package's face re-exports names of every floor, lazily.
FACE = ROOT / "batching" / "__init__.py"
# The words for failure lie under every floor: the module imports nothing of ours, so all may import it.
VOCABULARY = "batching.errors"


def floor_of(module: str) -> int | None:
    """0, 1, 2 from the ground up; None for a module that is not ours."""
    if module != "batching" and not module.startswith("batching."):
        return None
    if re.match(rf"{re.escape(VOCABULARY)}\b|batching\._native\b", module):
        return 0
    return 2 if re.match(r"batching\.runner\b", module) else 1


def module_of(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [FLOORS[folder], *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of what a Python file imports, also inside functions."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def cython_imports_of(path: Path) -> Iterator[str]:
    found = re.findall(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", path.read_text(), re.M)
    yield from (first or second for first, second in found)


def sources(*suffixes: str) -> list[Path]:
    return sorted(path for folder in FLOORS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


@pytest.mark.parametrize(
    "path",
    [path for path in sources(".py") if path != FACE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_python_file_imports_only_its_own_floor_and_those_below(path: Path) -> None:
    own = floor_of(module_of(path))
    upper = [name for name in imports_of(path) if (floor := floor_of(name)) is not None and floor > own]
    assert not upper, f"{path.relative_to(ROOT)} imports {upper} from a floor above its own"


@pytest.mark.parametrize("path", sources(".pyx", ".pxd"), ids=lambda path: str(path.relative_to(ROOT)))
def test_cython_file_imports_only_the_ground_floor(path: Path) -> None:
    upper = [name for name in cython_imports_of(path) if floor_of(name) in (1, 2)]
    assert not upper, f"{path.relative_to(ROOT)} imports {upper} from a floor above its own"


def test_vocabulary_of_errors_imports_nothing_of_the_package() -> None:
    path = ROOT / "batching" / "errors.py"
    assert module_of(path) == VOCABULARY
    assert [name for name in imports_of(path) if floor_of(name) is not None] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "_native").glob("*.[ch]")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_c_knows_no_python(path: Path) -> None:
    assert not re.search(r"#\s*include\s*[<\"]Python\.h", path.read_text())


@pytest.mark.parametrize("folder", ["runner", "batching"])
def test_folders_are_reached_by_their_installed_name_only(folder: str) -> None:
    names = {name.partition(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imports_of(path)}
    assert not names & {"runner", "_native"}, "a folder's own name makes a second copy of every class"
