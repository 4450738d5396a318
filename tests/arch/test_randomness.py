"""Every draw comes from a named stream: only core/rng.py touches a global random generator."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from project_sources import Source, dotted, imported, sources

HOME = "fedquilt/core/rng.py"
GLOBAL_MODULES = ("random", "secrets", "numpy.random", "np.random", "torch.random")
GLOBAL_CALLS = {
    "torch.manual_seed", "torch.seed", "torch.initial_seed", "torch.set_rng_state", "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all", "torch.mps.manual_seed", "torch.Generator", "os.urandom", "uuid.uuid4", "uuid.uuid1",
}  # fmt: skip
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "poisson"}
TORCH_LIKES = {"rand_like", "randn_like", "randint_like"}
IN_PLACE_DRAWS = {
    "uniform_",
    "normal_",
    "bernoulli_",
    "random_",
    "exponential_",
    "log_normal_",
    "cauchy_",
    "geometric_",
}


def draws(source: Source) -> Iterator[str]:
    """Every place that draws from a generator nobody named."""
    for node, name in imported(source.tree):
        if any(name == module or name.startswith(module + ".") for module in ("random", "secrets", "numpy.random")):
            yield f"{source.at(node)}: import of {name}"
    scoped = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.With)
        and any(
            isinstance(i.context_expr, ast.Call) and dotted_tail(i.context_expr.func) == "scope" for i in node.items
        )
        for inner in ast.walk(node)
    }
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in GLOBAL_CALLS or (name.startswith(GLOBAL_MODULES) and "." in name and not harmless(name)):
            yield f"{source.at(node)}: {name}"
        if id(node) in scoped:
            continue
        has_generator = any(keyword.arg == "generator" for keyword in node.keywords)
        tail = dotted_tail(node.func)
        if (
            name.startswith("torch.")
            and name.count(".") == 1
            and tail in TORCH_DRAWS | TORCH_LIKES
            and not has_generator
        ):
            yield f"{source.at(node)}: {name} without generator= and outside `with rng.scope()`"
        if isinstance(node.func, ast.Attribute) and not has_generator:
            initialiser = (
                ".init." in f".{name}" and tail.endswith("_") and tail not in {"zeros_", "ones_", "constant_", "eye_"}
            )
            if tail in IN_PLACE_DRAWS or initialiser:
                yield f"{source.at(node)}: .{tail}() without generator= and outside `with rng.scope()`"


def dotted_tail(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def harmless(name: str) -> bool:
    """Names that merely look like the standard library's ``random``."""
    return not any(name.startswith(module + ".") for module in GLOBAL_MODULES)


def test_only_the_rng_module_touches_a_global_generator() -> None:
    found = [place for source in sources() if source.path != HOME for place in draws(source)]
    assert not found, "take an Rng and use rng.torch(), rng.numpy() or rng.scope():\n" + "\n".join(found)


def test_the_rng_module_itself_is_seen() -> None:
    (home,) = [source for source in sources() if source.path == HOME]
    assert len(list(draws(home))) >= 3


@pytest.mark.parametrize(
    "line",
    [
        "import random",
        "torch.manual_seed(1)",
        "np.random.seed(1)",
        "np.random.default_rng()",
        "torch.randn(3)",
        "torch.randperm(3, device='cpu')",
        "x.uniform_(-1, 1)",
        "nn.init.kaiming_uniform_(x)",
        "torch.nn.init.normal_(x)",
    ],
)
def test_the_check_sees(line: str) -> None:
    assert list(draws(Source("fedquilt/x.py", line, ast.parse(line))))


@pytest.mark.parametrize(
    "line",
    [
        "torch.randn(3, generator=rng.torch())",
        "rng.numpy().permutation(3)",
        "with rng.scope():\n    nn.init.kaiming_uniform_(x)",
        "nn.init.zeros_(x)",
        "nn.init.kaiming_uniform_(x, generator=generator)",
        "randomised.draw()",
    ],
)
def test_the_check_leaves_named_streams_alone(line: str) -> None:
    assert not list(draws(Source("fedquilt/x.py", line, ast.parse(line))))
