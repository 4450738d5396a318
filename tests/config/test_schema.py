"""The schema documents itself."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from fedquilt.config.schema import Config, Training


def test_every_key_has_a_description():
    described = 0
    for key, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            assert section.__doc__
            for name, entry in section.model_fields.items():
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
