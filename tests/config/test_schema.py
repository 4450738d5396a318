"""The schema documents itself."""

from __future__ import annotations

import pytest

from fedquilt.config.network import Network
from fedquilt.config.schema import SECTIONS, Config
from fedquilt.config.sections import fields_of
from fedquilt.core.training import Training


def test_every_key_has_a_description():
    described = 0
    for key, field in Config.model_fields.items():
        if section := SECTIONS.get(key):
            assert section.__doc__
            for name, entry in fields_of(section).items():
                assert entry.description, f"{key}.{name}"
                described += 1
        else:
            assert field.description, key
    assert described > 30


def test_one_epoch_unless_steps_are_set():
    assert (Training().epochs, Training().steps) == (1, None)
    assert (Training(steps=3).epochs, Training(steps=3).steps) == (None, 3)
    with pytest.raises(ValueError, match="both set"):
        Training(steps=3, epochs=1)


def test_the_keys_of_nodes_are_lines_of_public_keys_one_for_each_client():
    key = "ecdsa-sha2-nistp384 " + "A" * 160
    other = key[:-1] + "B a comment"
    assert Network(node_keys=(key, other)).node_keys == (key, other)
    for keys, words in (
        ((key, "ssh-rsa AAAA"), "entry 1 is 'ssh-rsa AAAA', not the line of a public key"),
        ((key, key + "\n"), "entry 1 is"),
        ((key, other, key), "clients 0 and 2 have one key; each has one of its own"),
    ):
        with pytest.raises(ValueError, match=words):
            Network(node_keys=keys)
