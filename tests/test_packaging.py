"""What is installed: every source, one version, and nothing imported before it is needed."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "adaptive-batching"
INSTALLED_AS = {"_native": "batching/_native", "batching": "batching", "runner": "batching/runner"}
SOURCES = sorted(
    path for folder in INSTALLED_AS for suffix in ("*.py", "*.pyi") for path in (ROOT / folder).rglob(suffix)
)

IS_INSTALLED = "site-packages" in (importlib.util.find_spec("batching").origin or "")
needs_install = pytest.mark.skipif(
    not IS_INSTALLED, reason="an editable install leaves the sources where they are"
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def installed_path(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).parts
    return "/".join([INSTALLED_AS[folder], *rest])


def modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter that ran `code`."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_is_named_in_a_meson_build(path: Path) -> None:
    folders = [path.parent, *path.parent.parents]
    lists = [folder / "meson.build" for folder in folders if folder.is_relative_to(ROOT)]
    assert any(
        f"'{path.relative_to(list_.parent)}'" in list_.read_text() for list_ in lists if list_.exists()
    ), f"{relative(path)} is in no meson.build: it would be missing from the wheel"


@needs_install
@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_is_installed(path: Path) -> None:
    files = {str(file) for file in importlib.metadata.files(DISTRIBUTION) or ()}
    assert installed_path(path) in files


@needs_install
def test_only_the_package_is_installed() -> None:
    tops = {file.parts[0] for file in importlib.metadata.files(DISTRIBUTION) or ()}
    strange = {top for top in tops if top not in {"batching", ".."} and not top.endswith(".dist-info")}
    assert not strange


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".py"], ids=relative)
def test_module_is_found_under_its_installed_name(path: Path) -> None:
    name = installed_path(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert importlib.util.find_spec(name) is not None


def test_package_is_marked_as_typed() -> None:
    assert importlib.resources.files("batching").joinpath("py.typed").is_file()


def test_version_is_written_once() -> None:
    in_meson = re.search(r"version: '([^']+)'", (ROOT / "meson.build").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert importlib.metadata.version(DISTRIBUTION) == in_meson.group(1)
    assert not [relative(path) for path in SOURCES if re.search(r"__version__\s*=\s*['\"]", path.read_text())]


def test_setup_py_holds_no_second_list_of_sources() -> None:
    text = (ROOT / "setup.py").read_text()
    assert not re.search(r"\.(pyx|pxd|c|h)\b", text)
    imported = {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_setup_py_refuses_what_it_does_not_map() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "sdist"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "pip install ." in done.stderr


def test_import_is_lazy() -> None:
    assert not modules_after("import batching") & {
        "numpy",
        "pandas",
        "zmq",
        "uvloop",
        "asyncio",
        "cloudpickle",
    }


def test_public_names_all_resolve() -> None:
    import batching

    assert [name for name in batching.__all__ if not hasattr(batching, name)] == []
    assert set(batching.__all__) <= set(dir(batching))


@pytest.mark.slow
def test_pandas_is_imported_only_for_pandas() -> None:
    calls = """
import numpy as np
from batching import Runner

class Double(Runner):
    def _run_batch(self, x):
        return [2 * item for item in x] if isinstance(x, list) else 2 * x

with Double() as double:
    double.run(np.ones(3))
    double.run_batch([1, 2, 3])
"""
    assert "pandas" not in modules_after(calls)
    assert "pandas" in modules_after(
        calls + "    import pandas\n    double.run_batch(pandas.DataFrame({'a': [1]}))"
    )
