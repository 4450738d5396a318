"""One paper, one file. ``METHODS`` maps a method's name in a run file to its factory.

A factory is ``factory(federation, *, settings...) -> Method``; its keyword-only arguments are the keys that
``[method]`` may hold, with their types and defaults.
"""

from collections.abc import Callable

from fedquilt.core.method import Method
from fedquilt.methods.exclusive import exclusive
from fedquilt.methods.fed_hello import fed_hello
from fedquilt.methods.fedit import fedit
from fedquilt.methods.fedra import fedra
from fedquilt.methods.full import full
from fedquilt.methods.local_only import local_only
from fedquilt.methods.straggler import straggler

METHODS: dict[str, Callable[..., Method]] = {
    "fed-hello": fed_hello,
    "fedit": fedit,
    "fedra": fedra,
    "exclusive": exclusive,
    "straggler": straggler,
    "local-only": local_only,
    "full": full,
}
