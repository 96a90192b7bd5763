"""The structure described in CONTRIBUTING.md: which modules may import which, and file sizes."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pwlu_det"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
NEED_DETECTRON2 = ("backbone", "engine", "checkpoint", "data", "export")
# Imported inside functions, since most of the package works without them.
OPTIONAL = {"detectron2", "matplotlib", "onnxruntime", "sklearn", "resource", "yaml"}
NEED_OPTIONAL = {"pwlu_det.benchmark.models", "pwlu_det.benchmark.networks"}
# Each layer may import itself and the layers before it.
LAYERS = ("errors", "ops", "activations", "conversion", "config", "checkpoint", "data", "backbone")
LAYERS += ("preflight", "engine", "export")


def imports(path: Path):
    """For each import in a file, the module name and whether the import is inside a function."""
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in FILES else node.module), id(node) in inside


def own_imports(name: str) -> set[str]:
    return {module for module, _ in imports(FILES[name]) if module.split(".")[0] == "pwlu_det"}


def layer_of(name: str) -> str:
    return [*name.split("."), ""][1]


def test_no_circular_imports():
    def visit(name, path):
        assert name not in path, f"circular import: {' -> '.join([*path, name])}"
        for module in own_imports(name) if name not in done else ():
            if module != "pwlu_det":  # imported only for __version__
                visit(module, [*path, name])
        done.add(name)

    done: set[str] = set()
    for name in FILES:
        visit(name, [])


@pytest.mark.parametrize("name", FILES)
def test_only_optional_packages_are_imported_inside_functions(name):
    for module, inside in imports(FILES[name]):
        top = module.split(".")[0]
        if inside:
            assert top in OPTIONAL or module in NEED_OPTIONAL, f"{name} imports {module} in a function"
            assert top != "detectron2" or layer_of(name) not in NEED_DETECTRON2
        elif layer_of(name) in ("", "errors", "ops", "activations", "conversion", "config"):
            known = (*sys.stdlib_module_names, "torch", "numpy", "pwlu_det")
            assert top in known, f"{name} needs {top}, which is optional there"


@pytest.mark.parametrize("name", [name for name in FILES if layer_of(name) in LAYERS])
def test_no_module_imports_a_higher_layer(name):
    allowed = LAYERS[: LAYERS.index(layer_of(name)) + 1]
    for module in own_imports(name) - {"pwlu_det"}:
        assert layer_of(module) in (*allowed, "collect_env"), f"{name} imports {module}"


def test_file_sizes():
    for pattern in ("pwlu_det/**/*.py", "pwlu_det/csrc/**/*.*", "tools/*.py", "tests/**/*.py"):
        for path in ROOT.glob(pattern):
            lines = len(path.read_text().splitlines())
            assert lines <= 350, f"{path.relative_to(ROOT)} has {lines} lines"
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_files_in_the_code_map_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        folder = ROOT
        for name in re.findall(r"`([^`]+)`", row):
            path = ROOT / name if "/" in name else folder / name
            assert path.exists(), f"CONTRIBUTING.md names {name}, which does not exist"
            folder = path if path.is_dir() else path.parent
