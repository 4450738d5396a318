"""Letters and symbols drawn from fonts."""

from __future__ import annotations

import unicodedata

import pytest
import torch

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.data.synthetic import glyphs
from fedquilt.data.synthetic.glyphs import CLASSES, FONTS, distorted, font_folder, glyph_pool, glyph_table


def test_no_class_holds_a_digit_or_any_numeral():
    characters = "".join(CLASSES)
    assert len(characters) > 100
    for character in characters:
        assert unicodedata.category(character) not in {"Nd", "No", "Nl"}, character
        assert unicodedata.numeric(character, None) is None, character
        assert "DIGIT" not in unicodedata.name(character), character


def test_letters_drawn_like_a_digit_are_left_out():
    # the Cyrillic ze, che and small be, and the slashed empty set
    assert not set("ЗзЧчб∅") & set("".join(CLASSES))


def test_every_character_belongs_to_one_class():
    characters = "".join(CLASSES)
    assert len(set(characters)) == len(characters)
    assert 100 <= len(CLASSES) <= 150


def test_look_alike_cases_share_a_class():
    assert {"Cc", "Oo", "Ss", "Zz"} <= set(CLASSES)
    assert {"A", "a", "R", "r"} <= set(CLASSES)


def test_all_fonts_are_found():
    assert len(FONTS) >= 20
    for name in FONTS:
        assert (font_folder() / f"{name}.ttf").is_file(), name


def test_pool_has_every_class_and_skips_what_a_font_lacks():
    pool = glyph_pool()
    assert pool.images.dtype == torch.uint8
    assert pool.images.shape == (len(pool.labels), 56, 56)
    assert torch.equal(pool.labels.unique(), torch.arange(len(CLASSES)))
    assert (pool.images.flatten(1).max(1).values > 128).all()  # nothing is blank
    # STIX italics hold no arrows: the box that stands for a missing glyph must not be taken for one
    assert CLASSES.index("←") not in glyph_pool(("STIXGeneralItalic",)).labels
    assert CLASSES.index("←") in glyph_pool(("STIXGeneral",)).labels


def test_computer_modern_gives_letters_only():
    # its symbol codes hold other glyphs, figures among them
    labels = glyph_pool(("cmmi10",)).labels.unique().tolist()
    assert labels
    assert all(CLASSES[label][0].isascii() and CLASSES[label][0].isalpha() for label in labels)


def test_a_table_is_the_same_for_the_same_stream_and_not_for_another():
    first, again, other = (glyph_table(64, rng) for rng in (Rng(3), Rng(3), Rng(4)))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)


def test_a_table_is_white_on_black_bytes_with_classes():
    table = glyph_table(200, Rng(0))
    assert table.kind == "image"
    assert table.inputs.dtype == torch.uint8
    assert table.inputs.shape == (200, 28, 28)
    assert table.labels.dtype == torch.int64
    assert table.classes == CLASSES
    assert len(table) == 200
    assert table.inputs.float().mean() < 100
    border = torch.cat([table.inputs[:, 0], table.inputs[:, -1]]).float()
    assert border.mean() < 20


def test_drawing_leaves_the_global_generator_and_its_input_alone():
    pool = glyph_pool(("DejaVuSans",))
    before, state = pool.images.clone(), torch.get_rng_state()
    images = distorted(pool.images[:16], Rng(1).torch())
    assert images.shape == (16, 28, 28)
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(pool.images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_drawings_of_one_glyph_differ():
    glyph = glyph_pool(("DejaVuSans",)).images[:1].expand(2, -1, -1)
    left, right = distorted(glyph, Rng(0).torch())
    assert (left - right).abs().mean() > 0.01


def test_an_unknown_font_is_named():
    with pytest.raises(DataError, match=r"font 'Arial' is not known; allowed: DejaVuSans"):
        glyph_table(4, Rng(0), fonts=("Arial",))


def test_no_font_at_all():
    with pytest.raises(DataError, match="no font is named"):
        glyph_table(4, Rng(0), fonts=())


def test_a_size_below_one():
    with pytest.raises(DataError, match="size is 0"):
        glyph_table(0, Rng(0))


def test_missing_matplotlib(monkeypatch):
    monkeypatch.setattr(glyphs, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install matplotlib"):
        font_folder()


def test_a_missing_font_file(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "font_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"cmr10.ttf is missing"):
        glyph_pool.__wrapped__(("cmr10",))
