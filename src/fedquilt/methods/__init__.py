"""The methods, one file for each paper: a factory, and traits that say what the method can be combined with.

A factory is ``factory(federation, *, settings...) -> Method``; its keyword-only arguments are the keys that
``[method]`` may hold, with their types and defaults. ``METHODS`` maps the name of every method to its factory. A
method's module is imported when the method is looked up.
"""

from fedquilt.methods.registry import ENTRIES, METHODS, Entry, Own, register, traits_of
from fedquilt.methods.traits import Traits

__all__ = ["METHODS", "Entry", "Traits", "register", "traits_of"]

ENTRIES |= {
    "fed-hello": Own("fed_hello", traits="traits", without_proxy={"scores_from": "clients"}),
    "fedit": Own("fedit"),
    "ffa-lora": Own("ffa_lora"),
    "rolora": Own("rolora"),
    "fedsa-lora": Own("fedsa_lora"),
    "hetlora": Own("hetlora"),
    "flexlora": Own("flexlora"),
    "flora": Own("flora"),
    "fedex-lora": Own("fedex_lora", traits="traits"),
    "lora-fair": Own("lora_fair"),
    "fedrot-lora": Own("fedrot_lora"),
    "florg": Own("florg"),
    "fedrpca": Own("fedrpca"),
    "h2tune": Own("h2tune", traits="traits", suited={"common": {"ends": "common"}}),
    "fedra": Own("fedra", traits="traits"),
    "exclusive": Own("exclusive"),
    "straggler": Own("straggler"),
    "local-only": Own("local_only"),
    "full": Own("full"),
    "heterotune": Own("heterotune", traits="traits"),
    "co-lora": Own("co_lora", traits="traits"),
    "lada": Own("lada"),
    "fedmkt": Own("fedmkt"),
    "fedcot": Own("fedcot"),
    "fedcollm": Own("fedcollm"),
    "proto-evfl": Own("proto_evfl"),
    "vfl-split": Own("vertical_baselines", "vfl_split", traits="SPLIT"),
    "vfl-local": Own("vertical_baselines", "vfl_local", traits="ALONE"),
    "vfl-ensemble": Own("vertical_baselines", "vfl_ensemble"),
    "vfl-central": Own("vertical_baselines", "vfl_central", traits="CENTRAL"),
    "vfl-few-shot": Own("vfl_few_shot"),
    "vfl-hssl": Own("vfl_hssl", traits="traits"),
    "vfl-cvt": Own("vfl_cvt"),
    "fed-hello-released": Own("released", "fed_hello_released", traits="traits"),
}
