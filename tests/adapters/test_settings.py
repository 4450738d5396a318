"""The section [adapter]: two kinds, and keys that belong to one of them."""

from dataclasses import fields

import pytest

from fedquilt.adapters.settings import OF_KIND, Adapter, of_kind
from fedquilt.config.groups import parts
from fedquilt.config.load import parse, variants
from fedquilt.core.errors import ConfigError

BASE = {
    "model": {"name": "tiny:vit", "task": "image-classification"},
    "data": {"source": "sklearn:digits"},
    "partition": {"num_clients": 4},
}


def config(adapter, groups=(), **more):
    return parse({**BASE, "adapter": adapter, **({"groups": list(groups)} if groups else {}), **more})


def test_every_key_belongs_to_a_kind():
    assert {"kind"}.union(*OF_KIND.values()) == {field.name for field in fields(Adapter)}
    assert set(OF_KIND["lora"]) & set(OF_KIND["mixture"]) == {"rank", "alpha"}


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"gate": "token"}, r"gate is of kind = 'mixture' alone, and this is 'lora'; leave it out, or set kind"),
        (
            {"kind": "mixture", "targets": ["q"], "rslora": True},
            r"targets and rslora are of kind = 'lora' or 'anch",
        ),
        (
            {"kind": "full", "rank": 4},
            r"rank is of kind = 'lora' or 'mixture' or 'common' or 'anchored' alone",
        ),
        (
            {"kind": "full", "targets": ["q"], "gate": "token"},
            r"targets and gate are of kind = 'lora' or 'mixture' or",
        ),
        (
            {"kind": "mixture", "rank_pattern": {"q": 2}, "use_dora": True},
            r"use_dora and rank_pattern are of kind = 'l",
        ),
        ({"kind": "mixtures"}, r"adapter.kind = 'mixtures': not one of the choices \(did you mean 'mixture'\?\)"),
        ({"kind": "mixture", "sites": []}, r"adapter.sites = \[\]: must have at least 1 entry"),
        ({"kind": "mixture", "deviation": -0.1}, r"adapter.deviation = -0.1: must be at least 0"),
    ],
)
def test_what_does_not_go_together_is_refused(adapter, told):
    with pytest.raises(ConfigError, match=told):
        config(adapter)


def test_a_group_changes_keys_of_the_files_mixture_and_takes_another_kind_whole():
    mixture = {"kind": "mixture", "rank": 4, "activation": "identity"}
    groups = (
        {"label": "a", "budget": 1, "adapter": {"placement": "parallel"}},
        {"label": "b", "budget": 1, "adapter": {"kind": "lora", "targets": ["query"]}},
    )
    groups += ({"label": "c", "budget": 1, "adapter": {"kind": "full"}},)
    first, second, third = (part.config.adapter for part in parts(config(mixture, groups)))
    assert third == Adapter(kind="full")
    assert (first.kind, first.rank, first.activation, first.placement) == ("mixture", 4, "identity", "parallel")
    assert (second.kind, second.rank, second.activation, second.targets) == ("lora", 4, "gelu", ("query",))


def test_a_groups_keys_are_held_against_the_files_kind():
    with pytest.raises(ConfigError, match=r"groups\[0\].adapter: .*gate is of kind = 'mixture' alone"):
        config({"rank": 4}, ({"label": "a", "budget": 1, "adapter": {"gate": "token"}},))


def test_an_entry_of_compare_that_takes_another_kind_leaves_the_keys_of_the_files_behind():
    raw = {
        **BASE,
        "adapter": {"kind": "mixture", "rank": 4, "gate": "token"},
        "compare": [{"label": "lora", "adapter": {"kind": "lora"}}, {"label": "as it is"}],
    }
    made = dict(variants(raw))
    assert made["lora"]["adapter"] == {"kind": "lora", "rank": 4}
    assert made["as it is"]["adapter"]["gate"] == "token"
    assert of_kind(raw["adapter"], "mixture") == raw["adapter"]
