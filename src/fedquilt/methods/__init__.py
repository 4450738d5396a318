"""One paper, one file. ``METHODS`` maps a method's name in a run file to its factory.

A factory is ``factory(federation, *, settings...) -> Method``; its keyword-only arguments are the keys that
``[method]`` may hold, with their types and defaults.
"""

from collections.abc import Callable

from fedquilt.core.method import Method
from fedquilt.methods.exclusive import exclusive
from fedquilt.methods.fed_hello import fed_hello
from fedquilt.methods.fedex_lora import fedex_lora
from fedquilt.methods.fedit import fedit
from fedquilt.methods.fedra import fedra
from fedquilt.methods.fedsa_lora import fedsa_lora
from fedquilt.methods.ffa_lora import ffa_lora
from fedquilt.methods.flexlora import flexlora
from fedquilt.methods.flora import flora
from fedquilt.methods.full import full
from fedquilt.methods.h2tune import h2tune
from fedquilt.methods.heterotune import heterotune
from fedquilt.methods.hetlora import hetlora
from fedquilt.methods.local_only import local_only
from fedquilt.methods.lora_fair import lora_fair
from fedquilt.methods.rolora import rolora
from fedquilt.methods.straggler import straggler

METHODS: dict[str, Callable[..., Method]] = {
    "fed-hello": fed_hello,
    "fedit": fedit,
    "ffa-lora": ffa_lora,
    "rolora": rolora,
    "fedsa-lora": fedsa_lora,
    "hetlora": hetlora,
    "flexlora": flexlora,
    "flora": flora,
    "fedex-lora": fedex_lora,
    "lora-fair": lora_fair,
    "h2tune": h2tune,
    "fedra": fedra,
    "exclusive": exclusive,
    "straggler": straggler,
    "local-only": local_only,
    "full": full,
    "heterotune": heterotune,
}

ACROSS = frozenset({"h2tune", "heterotune"})
"""Methods that take a federation of several architectures as it is, because they share something across them. Any other
runs in each architecture apart, see ``by_architecture``."""
