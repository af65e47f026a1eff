"""The documents are true: their Python runs, their tables name what exists."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from batching import BatchOptions

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = [field.name for field in dataclasses.fields(BatchOptions)]
TUNING = ROOT / "docs" / "tuning.md"


def python_of(document: Path) -> str:
    """The fenced Python blocks of a document, in order: later ones may use names of earlier ones."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", document.read_text(), re.M | re.S))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules_with_examples() -> list[str]:
    homes = {"batching": "batching", "runner": "batching.runner"}
    paths = [path for folder in homes for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [path.relative_to(ROOT).with_suffix("") for path in paths if ">>> " in path.read_text()]
    return [".".join([homes[name.parts[0]], *name.parts[1:]]).removesuffix(".__init__") for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if python_of(path)], ids=name_of)
def test_python_of_the_document_runs(document: Path, tmp_path: Path) -> None:
    code = python_of(document)
    if "sklearn" in code:
        pytest.importorskip("sklearn")
    script = tmp_path / "document.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)(?:#[^)]*)?\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_documents_that_the_code_names_exist() -> None:
    sources = [path for folder in ("batching", "runner", "_native") for path in (ROOT / folder).rglob("*.*")]
    texts = [path.read_text() for path in sources if path.suffix in {".py", ".pyi", ".pyx", ".h", ".c"}]
    named = {name for text in texts for name in re.findall(r"\bdocs/[\w-]+\.md\b", text)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_tests_that_a_document_names_exist(document: Path) -> None:
    missing = [
        f"{path}::{test}"
        for path, test in re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", document.read_text())
        if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text())
    ]
    assert missing == []


def test_tuning_guide_has_one_section_for_each_option_and_no_other() -> None:
    assert re.findall(r"^## `(\w+)`", TUNING.read_text(), re.M) == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_tuning_guide_says_unit_default_and_statistic(name: str) -> None:
    section = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", TUNING.read_text(), re.M | re.S)
    for word in ("**Unit:**", "**Default:**", "**How to choose:**", "**Look at:**"):
        assert word in section.group(1)


def test_readme_names_only_make_targets_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^ {4}make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M)) <= set(targets)
