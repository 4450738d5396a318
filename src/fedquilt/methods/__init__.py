"""The methods, one file for each paper: a factory, and traits that say what the method can be combined with.

A factory is ``factory(federation, *, settings...) -> Method``; its keyword-only arguments are the keys that
``[method]`` may hold, with their types and defaults. ``METHODS`` maps the name of every method to its factory.
"""

from fedquilt.methods import (
    co_lora,
    exclusive,
    fed_hello,
    fedcollm,
    fedcot,
    fedex_lora,
    fedit,
    fedmkt,
    fedra,
    fedrot_lora,
    fedrpca,
    fedsa_lora,
    ffa_lora,
    flexlora,
    flora,
    florg,
    full,
    h2tune,
    heterotune,
    hetlora,
    lada,
    local_only,
    lora_fair,
    proto_evfl,
    released,
    rolora,
    straggler,
    vertical_baselines,
)
from fedquilt.methods.registry import ENTRIES, METHODS, Entry, register, traits_of
from fedquilt.methods.traits import Traits

__all__ = ["METHODS", "Entry", "Traits", "register", "traits_of"]

ENTRIES |= {
    "fed-hello": Entry(fed_hello.fed_hello, fed_hello.traits),
    "fedit": Entry(fedit.fedit, fedit.TRAITS),
    "ffa-lora": Entry(ffa_lora.ffa_lora, ffa_lora.TRAITS),
    "rolora": Entry(rolora.rolora, rolora.TRAITS),
    "fedsa-lora": Entry(fedsa_lora.fedsa_lora, fedsa_lora.TRAITS),
    "hetlora": Entry(hetlora.hetlora, hetlora.TRAITS),
    "flexlora": Entry(flexlora.flexlora, flexlora.TRAITS),
    "flora": Entry(flora.flora, flora.TRAITS),
    "fedex-lora": Entry(fedex_lora.fedex_lora, fedex_lora.traits),
    "lora-fair": Entry(lora_fair.lora_fair, lora_fair.TRAITS),
    "fedrot-lora": Entry(fedrot_lora.fedrot_lora, fedrot_lora.TRAITS),
    "florg": Entry(florg.florg, florg.TRAITS),
    "fedrpca": Entry(fedrpca.fedrpca, fedrpca.TRAITS),
    "h2tune": Entry(h2tune.h2tune, h2tune.traits, {"common": {"ends": "common"}}),
    "fedra": Entry(fedra.fedra, fedra.traits),
    "exclusive": Entry(exclusive.exclusive, exclusive.TRAITS),
    "straggler": Entry(straggler.straggler, straggler.TRAITS),
    "local-only": Entry(local_only.local_only, local_only.TRAITS),
    "full": Entry(full.full, full.TRAITS),
    "heterotune": Entry(heterotune.heterotune, heterotune.traits),
    "co-lora": Entry(co_lora.co_lora, co_lora.traits),
    "lada": Entry(lada.lada, lada.TRAITS),
    "fedmkt": Entry(fedmkt.fedmkt, fedmkt.TRAITS),
    "fedcot": Entry(fedcot.fedcot, fedcot.TRAITS),
    "fedcollm": Entry(fedcollm.fedcollm, fedcollm.TRAITS),
    "proto-evfl": Entry(proto_evfl.proto_evfl, proto_evfl.TRAITS),
    "vfl-split": Entry(vertical_baselines.vfl_split, vertical_baselines.TRAITS),
    "vfl-local": Entry(vertical_baselines.vfl_local, vertical_baselines.TRAITS),
    "vfl-ensemble": Entry(vertical_baselines.vfl_ensemble, vertical_baselines.TRAITS),
    "vfl-central": Entry(vertical_baselines.vfl_central, vertical_baselines.CENTRAL),
    "fed-hello-released": Entry(released.fed_hello_released, fed_hello.traits),
}
