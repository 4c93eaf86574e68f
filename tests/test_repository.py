"""The rules of the project that a machine can check."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import clipweather_fast
from clipweather_fast import env, installation, ops
from clipweather_fast.ops import _backends

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "clipweather_fast"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPERATORS = sorted(path.parent.name for path in (PACKAGE / "ops").glob("*/op.py"))
SOURCE_SUFFIXES = {".py", ".h", ".cpp", ".cu", ".md", ".toml", ".txt", ".in", ".json", ""}


def files() -> Iterator[Path]:
    """The project's own text files."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part != ".ci" for part in parts)
        made = parts[0] in ("build", "dist", "shared") or "__pycache__" in parts
        info = any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not (hidden or made or info) and path.suffix in SOURCE_SUFFIXES:
            yield path


def sources(*suffixes: str) -> list[Path]:
    """The package's and the native core's files with these suffixes."""
    return [p for folder in (PACKAGE, ROOT / "csrc") for s in suffixes for p in folder.rglob(s)]


def imports(path: Path) -> set[str]:
    """The full names of the modules a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


# ---- operators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operators_files_are_complete(operator: str) -> None:
    expected = [
        PACKAGE / "ops" / operator / "op.py",
        PACKAGE / "ops" / operator / "reference.py",
        ROOT / "tests" / "ops" / f"test_{operator}.py",
        ROOT / "benchmarks" / "ops" / f"bench_{operator}.py",
    ]
    assert [str(path.relative_to(ROOT)) for path in expected if not path.exists()] == []


def test_operators_have_one_name_everywhere() -> None:
    explained = sorted(operator.name for operator, _ in _backends._operators.values())
    assert explained == OPERATORS
    assert sorted(installation.SAMPLES) == OPERATORS
    for name in OPERATORS:
        assert name in ops.__all__
        assert hasattr(torch.ops.clipweather_fast, name)


def test_every_native_folder_belongs_to_an_operator() -> None:
    folders = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    # What only whole networks call, frozen or joined, is no operator; nor is a loss's term.
    assert folders - {"common", "inference", "losses", "residual_norm"} <= set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_public_functions_document_what_they_promise(operator: str) -> None:
    text = getattr(ops, operator).__doc__
    for section in ("Args:", "Returns:", "Gradients:", "Numerics:", "Raises:", ".. math::"):
        assert section in text, f"{operator}'s docstring has no {section}"


# ---- environment variables ---------------------------------------------------------------------


def test_environment_is_read_in_one_place() -> None:
    own = {PACKAGE / "env.py"}
    # TRITON_INTERPRET is Triton's own variable.
    readers = {
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(r"os\.(environ|getenv)", re.sub(r".*TRITON_INTERPRET.*", "", path.read_text()))
    }
    assert readers <= own


def test_every_variable_that_is_read_is_declared_and_the_other_way_round() -> None:
    read: set[str] = set()
    patterns = {
        "*.py": r"env\.read\(\s*\"(\w+)\"",
        "*.cpp": r"getenv\(\s*\"(\w+)\"",
        "*.h": r"getenv\(\s*\"(\w+)\"",
    }
    for glob, pattern in patterns.items():
        for path in sources(glob):
            read.update(re.findall(pattern, path.read_text()))
    read.update(re.findall(r"build_choice\(\s*\"(\w+)\"", (ROOT / "setup.py").read_text()))
    assert read == set(env.VARIABLES)


# ---- dependencies ------------------------------------------------------------------------------


def test_declared_dependencies_are_used_and_used_ones_declared() -> None:
    def names(lines: list[str]) -> set[str]:
        modules = {"open_clip_torch": "open_clip", "pillow": "PIL", "pyyaml": "yaml"}
        found = {re.split(r"[<>=\[ ]", line)[0] for line in lines}
        return {modules.get(name, name) for name in found}

    declared = names(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    # Who has spandrel asks for our part of it; with torch comes triton where it exists.
    elsewhere = {"clipweather_fast", "spandrel", "triton"}
    used = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imports(path)}
    used -= set(sys.stdlib_module_names) | elsewhere
    optional = {
        name
        for extra in extras
        if extra not in ("test", "dev", "bench")  # those of the folders beside the package
        for name in names(extras[extra])
    }
    # torch wants numpy, and warns at the first import without it.
    assert used | {"numpy"} == declared | optional
    for extra in ("video", "onnx", "tensorboard"):
        assert set(extras[extra]) <= set(extras["test"])


def test_imports_go_one_way() -> None:
    layers = ["env", "ops", "modules", "clip", "models", "losses", "restore", "data"]
    layers += ["evaluation", "training", "speed"]
    layers += ["integrations", "export", "demo", "installation", "cli"]
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer not in layers:
            continue
        above = layers[layers.index(layer) + 1 :]
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "clipweather_fast" and len(parts) > 1 and parts[1] in above:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_torch_header_in_the_native_core() -> None:
    for path in sources("*.h", "*.cpp", "*.cu"):
        assert not re.search(r'#\s*include\s*[<"](torch|ATen|c10)/', path.read_text()), path


# ---- files -------------------------------------------------------------------------------------


def test_files_stay_short() -> None:
    lengths = {p: p.read_text().count("\n") for p in sources("*.py", "*.h", "*.cpp", "*.cu")}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 450} == {}


def test_files_are_named_for_what_they_hold() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common_utils", "tools"}
    assert [str(path) for path in files() if path.stem.strip("_") in vague] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    places = re.compile("|".join(f"/{top}/" for top in ("work", "home", "root", "opt/venv")))
    found = [str(path.relative_to(ROOT)) for path in files() if places.search(path.read_text())]
    assert found == []


def test_nothing_is_left_to_do() -> None:
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
    found = [str(path.relative_to(ROOT)) for path in files() if words.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_pages_point_at_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    code = re.findall(r"`((?:[\w.]+/)+[\w.]+\.\w+|(?:[\w.]+/)+)`", text)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    base = (ROOT / page).parent
    # `my_op` stands for an operator to come, results and build are made by a run.
    made = ("benchmarks/results/", "build/")
    code = [name for name in code if "my_op" not in name and not name.startswith(made)]
    missing = [name for name in code if not (ROOT / name).exists()]
    missing += [name for name in links if not (base / name).exists()]
    assert missing == []


# ---- what the reader sees ----------------------------------------------------------------------


def test_generated_tables_of_the_readme_are_current() -> None:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "docs/readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / "README.md").read_text()
    assert tables.current(text) == text, "run `make tables`"


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    written = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    assert written.count("\n") <= 100


def test_versions_agree() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"] == clipweather_fast.__version__
