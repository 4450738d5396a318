"""H2-20: the methods that H2Tune is compared with are what they are called. The released code's are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedquilt.aggregate.lowrank.rules import merged, segment_rule, svd_rule
from fedquilt.core.factors import factors, named
from fedquilt.core.rng import Rng
from fedquilt.core.types import Reply

laws = settings(max_examples=60, deadline=None)


def clients(seed, num_clients, rank=3, d_out=5, d_in=4, norm=None):
    """Replies of clients with drawn factors of one module; with ``norm`` their products are all that large."""
    generator = Rng(seed).torch()
    replies = []
    for client in range(num_clients):
        b, a = torch.randn(d_out, rank, generator=generator), torch.randn(rank, d_in, generator=generator)
        if norm is not None:
            b = b * norm / (b @ a).norm()
        replies.append(Reply(client, named({"m": (b, a)}), 1 + client))
    return replies


def after(rule, replies):
    state = {name: torch.zeros_like(tensor) for name, tensor in replies[0].params.items()}
    return merged(rule, state, iter(replies), "examples", lambda module, rank: 2.0).params


@laws
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_h2_20_hetlora_among_equal_ranks_and_norms_is_the_mean_of_a_and_of_b(seed, num_clients):
    """H2-20. The released HetLoRA rotates A and B into unrelated bases, so their product is lost (B14)."""
    replies = clients(seed, num_clients, norm=1.5)
    made = after(segment_rule("all"), replies)
    for name in made:
        mean = torch.stack([reply.params[name] for reply in replies]).mean(0)
        torch.testing.assert_close(made[name], mean, rtol=1e-4, atol=1e-5)


@laws
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_h2_20_flexlora_at_full_rank_is_the_weighted_mean_of_products(seed, num_clients):
    """H2-20. The released code has no FlexLoRA at all; its HetLoRA keeps none of the product (B14)."""
    replies = clients(seed, num_clients, rank=4)
    ((b, a),) = factors(after(svd_rule(), replies)).values()
    total = sum(reply.weight for reply in replies)
    mean = sum(reply.weight / total * reply.params["m.lora_B"] @ reply.params["m.lora_A"] for reply in replies)
    torch.testing.assert_close(b @ a, mean, rtol=0, atol=1e-5 * float(mean.norm()) + 1e-5)


def test_h2_20_a_client_that_learned_more_weighs_more_in_hetlora():
    """H2-20. The released HetLoRA weighs all alike, whatever they learned (B14)."""
    small, large = clients(3, 2, norm=1.0)
    tripled = Reply(1, {**large.params, "m.lora_B": 3 * large.params["m.lora_B"]}, 2)
    made = after(segment_rule("all"), [small, tripled])["m.lora_A"]
    expected = 0.25 * small.params["m.lora_A"] + 0.75 * large.params["m.lora_A"]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    assert float(made.norm()) != pytest.approx(float(small.params["m.lora_A"].norm()))
