"""LaDa: the server's large model and the clients' small ones teach each other reasoning paths that they choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, get_args

from fedquilt.core.errors import ConfigError
from fedquilt.core.federation import Federation
from fedquilt.core.method import Method
from fedquilt.core.settings import Count, Few, Kept, Part, Penalty, Positive, Tokens, Unless, With
from fedquilt.distill.contrast import Contrast
from fedquilt.distill.messages import Paths
from fedquilt.distill.public import server_of
from fedquilt.distill.reward import Reward
from fedquilt.distill.selection import FilterSettings
from fedquilt.distill.student import Teaching
from fedquilt.distill.texts_only import refuse_likelihoods
from fedquilt.distill.wrapper import Direction, with_lada
from fedquilt.methods.layered import Weighting
from fedquilt.methods.registry import METHODS, defaults, traits_of
from fedquilt.methods.sharing import averaging
from fedquilt.methods.traits import Traits

SchemeName = Literal["fedit", "fedmkt", "fedcot", "fedcollm"]
Choosing = Literal["learnability", "linear-ucb", "all", "random", "confidence", "loss", "verified"]

_TAUGHT = Unless("direction", "none")
_LEARNS = With("filter", ("learnability", "linear-ucb"))
_NETWORKS = With("filter", ("learnability",))
_CHOOSES = With("filter", tuple(name for name in get_args(Choosing) if name not in ("all", "verified")))

TRAITS = Traits(across=True, merge="own", sends_scores=True, needs_server=True, server_texts=True)


def lada(
    federation: Federation,
    *,
    scheme: Annotated[SchemeName, _TAUGHT] = "fedit",
    direction: Direction = "both",
    filter: Annotated[Choosing, _TAUGHT] = "learnability",
    choice: Annotated[Literal["budget", "threshold"], _TAUGHT, _CHOOSES] = "budget",
    share: Annotated[Kept, _TAUGHT, _CHOOSES, With("choice", ("budget",))] = 0.5,
    threshold: Annotated[Part, _TAUGHT, _CHOOSES, With("choice", ("threshold",))] = 0.5,
    explore: Annotated[Penalty, _TAUGHT, _LEARNS] = 0.5,
    prior: Annotated[Literal["none", "confidence"], _TAUGHT, _NETWORKS] = "none",
    warm: Annotated[Few, _TAUGHT, _NETWORKS, With("prior", ("none",))] = 1,
    sample_reward: Annotated[Literal["reliable", "paper"], _TAUGHT, _LEARNS] = "reliable",
    sample_weight: Annotated[Part, _TAUGHT, _LEARNS] = 0.5,
    verified: Annotated[bool, _TAUGHT, Unless("filter", "verified")] = False,
    candidates: Annotated[Count, _TAUGHT] = 32,
    path_tokens: Annotated[Tokens, _TAUGHT] = 64,
    path_bytes: Annotated[Tokens, _TAUGHT] = 256,
    temperature: Annotated[Penalty, _TAUGHT] = 0.7,
    transfer: Annotated[Penalty, _TAUGHT] = 1.0,
    contrast: Annotated[Penalty, _TAUGHT] = 0.1,
    beta: Annotated[Positive, _TAUGHT, Unless("contrast", 0.0)] = 2.0,
    reference: Annotated[Literal["peer", "self"], _TAUGHT, Unless("contrast", 0.0)] = "peer",
    samples: Annotated[Count, _TAUGHT] = 8,
    weighting: Weighting = "examples",
) -> Method:
    """LaDa over another scheme of collaboration, see ``with_lada``.

    Parameters
    ----------
    federation : its clients may differ in architecture and tokenizer; the server owns a model and public questions.
    scheme : federated averaging of the students' adapters within each architecture, with a server that trains on its
        own rows (``fedit``); or the method of this name with its defaults, and with those settings that both have.
    direction : ``down`` teaches clients alone, ``up`` the server alone, ``none`` nobody: all learn from their own rows.
    filter : what chooses samples: ``learnability``, or a control.
    choice : the samples with the largest scores, or all above the threshold.
    share : share of the candidates that is chosen by a budget.
    threshold : score above which a candidate is chosen.
    explore : weight of exploration in the score.
    prior : what the filter's networks begin from: nothing, or the teacher's confidence.
    warm : number of first rounds in which samples are chosen by clusters.
    sample_reward : ``reliable`` by the teacher's likelihood of its own path; ``paper`` by margin and difficulty.
    sample_weight : weight of the sample's reward in a label; the rest is that of the batch's reward.
    verified : never choose a path that ends in a wrong answer.
    candidates : number of public questions of a round, drawn anew in each.
    path_tokens : largest number of tokens of a generated path.
    path_bytes : largest number of bytes of a path's text.
    temperature : of the students' sampling; 0 for greedy decoding, as the server's always is.
    transfer : weight of the loss on the chosen samples beside that on own rows.
    contrast : weight of the contrastive loss beside the supervised one on the teacher's path.
    beta : factor of the margin in the contrastive loss.
    reference : likelihoods are compared with the teacher's (``peer``), or the student's before it learns (``self``).
    samples : number of chosen samples of each teacher in an optimiser step.
    weighting : clients' weights in the means of their adapters.

    Raises
    ------
    ConfigError
        if the server has no rows, or answers are asked for that the public questions do not have.
    """
    choosing = FilterSettings(filter, choice=choice, share=share, threshold=threshold, explore=explore, warm=warm)
    choosing = replace(choosing, prior=prior, prior_weight=sample_weight)
    rating = Reward(sample_reward, sample_weight)
    teaching = Teaching(choosing, Contrast(contrast, beta, reference), rating, verified, transfer, samples)
    paths = Paths(candidates, path_tokens, path_bytes, temperature)
    right = "method: right paths are asked for" if verified or filter == "verified" else ""
    if server_of(federation, "lada", answered=right).texts_only:
        if traits_of(scheme).needs_server and not traits_of(scheme).server_texts:
            raise ConfigError(f"method.scheme = '{scheme}': needs a model of the server's own; set it to 'fedit'")
        refuse_likelihoods(teaching, direction)
    both = {"candidates": candidates, "path_tokens": path_tokens, "path_bytes": path_bytes, "samples": samples}
    made = partial(_scheme, name=scheme, settings={**both, "weighting": weighting})
    return with_lada(made, federation, teaching, paths, direction)._replace(name="lada")


def _scheme(federation: Federation, *, name: SchemeName, settings: Mapping[str, Any]) -> Method:
    """The scheme of this name, with those of the settings that it has."""
    if name == "fedit":
        return averaging(name, federation, settings["weighting"])
    factory = METHODS[name]
    known = defaults(factory)
    return factory(federation, **{key: value for key, value in settings.items() if key in known})
