"""Who may import whom: edgevlm -> edgevlm_export -> edgevlm_runtime, and what the runtime must never load or know."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from edgevlm_export.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "runtime" / "edgevlm_runtime"
EXPORT = ROOT / "export" / "edgevlm_export"
FRONT = ROOT / "edgevlm"

FORBIDDEN = {
    RUNTIME: {"edgevlm", "edgevlm_export", "torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors"},
    EXPORT: {"edgevlm"},
    FRONT: {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "onnxruntime"},
}
RUNTIME_THIRD_PARTY = {"numpy", "PIL", "tokenizers"}


def _sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"{folder} has no sources"
    return found


def _imports(path: Path) -> Iterator[str]:
    """The top-level names of everything a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN, ids=lambda path: path.name)
def test_dependencies_point_one_way(package: Path) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _sources(package)
        for name in _imports(path)
        if name in FORBIDDEN[package]
    }
    assert not wrong


def test_the_runtime_needs_only_its_own_packages() -> None:
    known = RUNTIME_THIRD_PARTY | {"edgevlm_runtime"} | sys.stdlib_module_names
    engines = {"onnxruntime", "onnxruntime_qnn", "openvino"}
    optional = {"video.py": {"av"}}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _sources(RUNTIME)
        for name in _imports(path)
        if name not in known | (engines if path.parent.name == "engines" else optional.get(path.name, set()))
    }
    assert not wrong


@pytest.mark.parametrize("module", ["edgevlm_runtime", "edgevlm_runtime.model", "edgevlm", "edgevlm.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")]
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "transformers", "onnx", "onnx_ir", "edgevlm_export"} & set(loaded)
    if module.startswith("edgevlm."):
        assert not {"onnxruntime", "PIL", "numpy"} & set(loaded), "--help would wait for them"


def test_nothing_prints_outside_the_command_line() -> None:
    wrong = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in (RUNTIME, EXPORT, FRONT)
        for path in _sources(package)
        if FRONT / "cli" not in path.parents
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert not wrong


def test_the_runtime_knows_no_model_by_name() -> None:
    catalog = yaml.safe_load((ROOT / "models.yaml").read_text(encoding="utf-8"))
    words = {name.replace("_", "-") for name in set(FAMILIES) | set(catalog)} - {"nano"}
    words |= {"moondream", "phi", "siglip", "starmie", "llava", "tinygpt", "fastvit", "tinyvit"}
    spellings = [rf"\b{re.escape(word)}".replace(r"\-", "[-_]") for word in sorted(words)]
    pattern = re.compile("|".join(spellings), re.IGNORECASE)
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _sources(RUNTIME)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong
