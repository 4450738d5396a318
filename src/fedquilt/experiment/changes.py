"""What a config says on changes of how any method trains and steps, joined to the method."""

from __future__ import annotations

from fedquilt.aggregate.server_optimizer import NOT_BY_FACTORS, with_server_optimizer
from fedquilt.client.penalty import with_proximal
from fedquilt.config.schema import Config
from fedquilt.core.errors import ConfigError
from fedquilt.core.method import Method


def changed(config: Config, method: Method) -> Method:
    """The method with the penalty in local training and the server optimiser that the config asks for."""
    method, wanted = with_proximal(method, config.training.proximal), config.aggregation
    if wanted.server_optimizer == "none":
        return method
    return with_server_optimizer(
        method,
        wanted.server_optimizer,
        learning_rate=wanted.server_learning_rate,
        momentum=wanted.server_momentum,
        beta2=wanted.server_beta2,
        tau=wanted.server_tau,
    )


def refuse_changes(config: Config) -> None:
    """Nothing, if the changes that the config asks for go with its method and its rule.

    Raises
    ------
    ConfigError
        with every change that does not.
    """
    name, mu = config.method.name, config.training.proximal
    problems = []
    if mu > 0 and name == "local-only":
        problems.append(
            f"training.proximal = {mu}: with method.name = 'local-only' a client receives nothing that it could be "
            "held near; set training.proximal = 0"
        )
    if mu > 0 and name == "h2tune":
        problems.append(
            f"training.proximal = {mu}: what 'h2tune' trains is not what travels; its method.anchor holds the cores "
            "near what was sent, so set training.proximal = 0"
        )
    problems += server_optimizer_problems(config.aggregation.server_optimizer, name, config.aggregation.rule)
    if problems:
        raise ConfigError(problems)


def server_optimizer_problems(kind: str, method: str, rule: str) -> list[str]:
    """Why this server optimiser does not go with this method and this rule; empty if it does."""
    if kind == "none":
        return []
    here, leave = f"aggregation.server_optimizer = '{kind}'", "set aggregation.server_optimizer = 'none'"
    if method == "local-only":
        return [f"{here}: with method.name = 'local-only' the server gets nothing to step by; {leave}"]
    return [
        f"{here} does not go with {key} = '{value}': {NOT_BY_FACTORS[value]}, and momentum over factors is not gauge "
        f"invariant; {leave}"
        for key, value in (("method.name", method), ("aggregation.rule", rule))
        if value in NOT_BY_FACTORS
    ]
