"""Random clients for the laws of low-rank aggregation, and the dense matrices that they stand for."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

from fedquilt.core.factors import Factors, Product
from fedquilt.core.rng import Rng

laws = settings(deadline=None)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}


@st.composite
def clients(draw, dtypes=(torch.float64,), one_rank=False, most=4, ranks=6):
    """1 to ``most`` clients of one module of up to 7 x 7: unlike ranks, unless told, unlike scales and weights."""
    generator = Rng(draw(st.integers(0, 2**32)), ("low-rank",)).torch()
    d_out, d_in = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    dtype = draw(st.sampled_from(dtypes))
    shared = draw(st.integers(1, ranks))
    made = []
    for _ in range(draw(st.integers(1, most))):
        rank = shared if one_rank else draw(st.integers(1, ranks))
        b = torch.randn(d_out, rank, generator=generator).to(dtype)
        a = torch.randn(rank, d_in, generator=generator).to(dtype)
        made.append(Factors(b, a, draw(st.sampled_from([0.25, 1.0, 2.0, 3.5])), draw(st.integers(1, 500))))
    return made


def dense_mean(made):
    """``sum_k w_k s_k B_k A_k / sum_k w_k``, the slow way."""
    total = sum(c.weight for c in made)
    return sum(c.weight / total * c.scale * (c.B.double() @ c.A.double()) for c in made)


def matrix(product):
    return product.B.double() @ product.A.double()


def regauged(made, seed):
    """The same products from other factors: ``B M`` and ``M^-1 A``, with another M for each client."""
    generator = Rng(seed, ("gauge",)).torch()
    changed = []
    for client in made:
        rank = client.A.shape[0]
        basis, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
        m = basis * torch.linspace(0.5, 2.0, rank, dtype=torch.float64)  # well conditioned, not orthogonal
        changed.append(client._replace(B=client.B @ m, A=torch.linalg.inv(m) @ client.A))
    return changed


def copies(made):
    return [(c.B.clone(), c.A.clone()) for c in made]


def unchanged(made, before):
    return all(torch.equal(c.B, b) and torch.equal(c.A, a) for c, (b, a) in zip(made, before, strict=True))


def product_of(d_out, rank, d_in, seed=0, dtype=torch.float64):
    generator = Rng(seed, ("product",)).torch()
    return Product(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(rank, d_in, generator=generator, dtype=torch.float64).to(dtype),
    )
