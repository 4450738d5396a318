"""What a teacher cannot do of which only texts are known, such as an endpoint."""

from __future__ import annotations

from fedquilt.core.errors import ConfigError
from fedquilt.distill.student import Teaching


def refuse_likelihoods(teaching: Teaching, direction: str) -> None:
    """Raise ConfigError, with every such setting, if the teaching needs the server's likelihoods, or its training.

    ``direction`` says who is taught.
    """
    learns = teaching.filter.name in ("learnability", "linear-ucb")
    needs = {
        "direction": (direction, direction in ("both", "up"), "training", "'down'"),
        "filter": (teaching.filter.name, teaching.filter.name == "confidence", "", "'all', 'random' or 'loss'"),
        "prior": (
            *(teaching.filter.prior, teaching.filter.name == "learnability" and teaching.filter.prior == "confidence"),
            *("", "'none'"),
        ),
        "sample_reward": (teaching.reward.sample, learns and teaching.reward.sample == "reliable", "", "'paper'"),
        "reference": (
            *(teaching.contrast.reference, teaching.contrast.weight > 0 and teaching.contrast.reference == "peer"),
            *("", "'self', or method.contrast to 0"),
        ),
    }
    problems = [
        f"method.{key} = '{value}': needs {what or 'log-probabilities'} of the server's model, and server.endpoint "
        f"only writes texts; set it to {instead}"
        for key, (value, asked, what, instead) in needs.items()
        if asked and direction != "none"
    ]
    if problems:
        raise ConfigError(problems)
