"""The import table of docs/design.md holds: between our packages (import-linter) and towards other people's (below)."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from project_sources import ROOT, imported, sources

OURS = {"core": {"torch", "annotated_types"}}
"""What a package may import from outside the standard library; the packages not named here get ``REST``."""

REST = {"torch", "numpy", "safetensors", "annotated_types"}

MORE = {
    "core/rng.py": {"numpy"},
    "aggregate/axes.py": {"scipy"},
    "config": {"pydantic", "pydantic_core"},
    "data": {"PIL", "sklearn", "pandas", "pyarrow"},
    "data/readers/hub.py": {"datasets"},
    "data/readers/spreadsheet.py": {"openpyxl"},
    "models": {"huggingface_hub", "tokenizers"},
    "pretrain/arithmetic.py": {"tokenizers"},
    "models/hf_files.py": {"transformers"},
    "models/mlp.py": {"transformers"},
    "trainer/rounds.py": {"transformers"},
    "experiment/benchmarks.py": {"lm_eval"},
    "models/quantization.py": {"bitsandbytes"},
    "models/endpoint.py": {"httpx"},
    "report/charts.py": {"altair"},
    "report/document.py": {"vl_convert"},
    "report/figure.py": {"matplotlib"},
    "report/live.py": {"starlette", "uvicorn"},
    "report/paired_differences.py": {"scipy"},
    "experiment/trackers.py": {"mlflow", "wandb", "trackio"},
    "cli": {"typer", "rich", "click"},
    "engine/flower": {"flwr"},
    "engine/flower/certs.py": {"cryptography"},
    "engine/flower/seal.py": {"cryptography"},
    "privacy/account.py": {"dp_accounting"},
    "vertical/clusters.py": {"sklearn"},
    "vertical/alignment/psi.py": {"private_set_intersection"},
}
"""What single packages and files may import on top of that."""


def lint_imports(config: Path, source_root: Path) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(source_root)!r}); from importlinter.cli import lint_imports; "
        f"sys.exit(lint_imports(config_filename={str(config)!r}, no_cache=True))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=config.parent, timeout=120)


def test_every_import_contract_is_kept() -> None:
    done = lint_imports(ROOT / "pyproject.toml", ROOT / "src")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"Contracts: (\d+) kept, (\d+) broken", done.stdout)
    assert counts is not None, done.stdout
    assert int(counts[1]) >= 8
    assert int(counts[2]) == 0


@pytest.mark.parametrize(
    ("module", "line", "num_broken"),
    [
        ("client/right.py", "import fedquilt.core", 0),
        ("core/wrong.py", "import fedquilt.data", 1),
        ("aggregate/wrong.py", "import fedquilt.data", 1),
        ("data/wrong.py", "import pickle", 1),
        ("client/wrong.py", "import transformers", 1),
        ("engine/wrong.py", "import rich", 1),
        ("methods/fedra.py", "from fedquilt.methods import fedit", 1),
    ],
)
def test_the_contracts_notice_a_wrong_import(tmp_path: Path, module: str, line: str, num_broken: int) -> None:
    package = tmp_path / "fedquilt"
    for name in ("core", "aggregate", "data", "client", "engine", "methods", "models", "report", "cli"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    for name in (
        "__init__",
        "methods/fedit",
        "methods/fedra",
        "models/hf_files",
        "data/hub",
        "report/figure",
        "engine/flower",
    ):
        (package / f"{name}.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (package / module).write_text(line + "\n")
    done = lint_imports(tmp_path / "pyproject.toml", tmp_path)
    assert f"{num_broken} broken" in done.stdout, done.stdout + done.stderr
    assert done.returncode == num_broken


def test_a_package_imports_only_the_libraries_it_is_allowed() -> None:
    wrong, seen = [], set()
    for source in sources():
        path = source.path.removeprefix("fedquilt/")
        allowed = OURS.get(path.split("/")[0], REST) | {
            library
            for place, libraries in MORE.items()
            if path == place or path.startswith(place)
            for library in libraries
        }
        for node, name in imported(source.tree):
            library = name.split(".")[0]
            if library in sys.stdlib_module_names or library in ("fedquilt", "__future__"):
                continue
            seen.add(library)
            if library not in allowed:
                wrong.append(f"{source.at(node)} imports {library}; allowed here: {sorted(allowed)}")
    assert "torch" in seen
    assert not wrong, "\n".join(wrong)


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\[<>=!~;\s]", text)[0].lower() for text in project["dependencies"]}
    extra = project["optional-dependencies"]
    optional = [
        text
        for name in ("flower", "privacy", "quantization", "endpoint", "psi", "watch", "excel", "evaluate")
        for text in extra[name]
    ]
    extras = {re.split(r"[\[<>=!~;\s]", text)[0].lower() for text in optional}
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn", "pydantic_core": "pydantic"}
    distributions |= {"private_set_intersection": "openmined-psi", "vl_convert": "vl-convert-python"}
    used = {name.split(".")[0] for source in sources() for _, name in imported(source.tree)}
    used -= {"fedquilt", *sys.stdlib_module_names}
    used -= MORE["experiment/trackers.py"]  # a user installs the one that they have; none is needed
    missing = {name for name in used if distributions.get(name, name).replace("_", "-") not in declared | extras}
    assert len(used) >= 5
    assert not missing


def test_constraints_pin_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0] for line in lines if line and not line.startswith("#")}
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    missing = {re.split(r"[\[<>=!~;\s]", text)[0].lower() for text in wanted} - pins
    assert len(wanted) > 15
    assert not missing


def test_imports_are_absolute() -> None:
    relative = [
        source.at(node)
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not relative, relative
