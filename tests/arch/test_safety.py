"""Nothing in the package runs code that came in as data: no pickle, no eval, no shell, no remote code by default."""

from __future__ import annotations

import ast

import pytest
from project_sources import Source, dotted, imported, sources

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system", "os.popen", "yaml.load",
    "pandas.read_pickle", "pd.read_pickle", "torch.hub.load",
}  # fmt: skip
FENCED = "fedquilt/metrics/program_child.py"
"""The one script that runs what came as data: a model's answers that are programs, each in a bounded process."""
FORBIDDEN_TRUE = {"shell", "trust_remote_code", "allow_pickle"}


def dangers(source: Source) -> list[str]:
    found = []
    for node, name in imported(source.tree):
        if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS:
            found.append(f"{source.at(node)}: import of {name}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                found.append(f"{source.at(node)}: call of {dotted(node.func)}")
            found += [
                f"{source.at(node)}: {keyword.arg}=True"
                for keyword in node.keywords
                if keyword.arg in FORBIDDEN_TRUE and isinstance(keyword.value, ast.Constant) and keyword.value.value
            ]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for argument, default in defaults(node.args):
                if argument in FORBIDDEN_TRUE and isinstance(default, ast.Constant) and default.value:
                    found.append(f"{source.at(node)}: {argument} is on by default")
    return found


def defaults(arguments: ast.arguments) -> list[tuple[str, ast.expr | None]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    tail = positional[len(positional) - len(arguments.defaults) :]
    pairs = [
        *zip(tail, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [(argument.arg, default) for argument, default in pairs]


def test_the_package_runs_nothing_that_came_as_data() -> None:
    found = [danger for source in sources() if source.path != FENCED for danger in dangers(source)]
    assert not found, "\n".join(found)


def test_the_one_script_that_does_is_never_imported() -> None:
    (fenced,) = (source for source in sources() if source.path == FENCED)
    assert [danger.partition(": ")[2] for danger in dangers(fenced)] == ["call of compile", "call of exec"]
    name = FENCED.removesuffix(".py").replace("/", ".")
    others = [source for source in sources() if source.path != FENCED]
    assert not [source.path for source in others for _, used in imported(source.tree) if used.startswith(name)]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "f(trust_remote_code=True)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "def f(*, trust_remote_code=True): ...",
    ],
)
def test_the_check_sees(line: str) -> None:
    assert dangers(Source("fedquilt/x.py", line, ast.parse(line)))


@pytest.mark.parametrize("line", ["model.eval()", "def f(*, trust_remote_code=False): ...", "re.compile('x')"])
def test_the_check_leaves_the_harmless_alone(line: str) -> None:
    assert not dangers(Source("fedquilt/x.py", line, ast.parse(line)))
