"""Corrupted rows: the share that is replaced, where replacements come from, and what is left alone."""

import torch

from fedquilt.core.rng import Rng
from fedquilt.vertical.corruption import corrupted


def test_a_share_of_values_is_replaced_by_those_of_other_rows_at_the_same_place():
    table = torch.arange(4000.0).view(200, 20)
    rows = {"values": table, "labels": torch.arange(200)}
    found = corrupted(rows, 0.25, Rng(0))
    changed = found["values"] != table
    assert abs(float(changed.float().mean()) - 0.25) < 0.03
    assert torch.equal(found["values"] % 20, table % 20)
    assert torch.equal(found["labels"], rows["labels"])
    assert torch.equal(found["values"], corrupted(rows, 0.25, Rng(0))["values"])
    assert torch.equal(corrupted(rows, 0.0, Rng(0))["values"], table)


def test_all_channels_of_a_pixel_are_replaced_together():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    found = corrupted({"pixel_values": images, "labels": torch.zeros(8)}, 0.5, Rng(1))["pixel_values"]
    assert torch.equal(found[:, 0], found[:, 2])
    assert not torch.equal(found[:, 0], images[:, 0])


def test_where_a_text_ends_is_left_alone():
    rows = {"input_ids": torch.arange(12).view(4, 3), "attention_mask": torch.eye(4, 3).long(), "labels": torch.ones(4)}
    assert torch.equal(corrupted(rows, 0.9, Rng(0))["attention_mask"], rows["attention_mask"])
