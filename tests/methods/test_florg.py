"""FLoRG on real clients: the best approximation of the mean Gram matrix, in the coordinates of the last round."""

from __future__ import annotations

import torch
from promises import Setup
from recording import in_round, mean_change, recorded, weights
from small_federation import small

from fedquilt.core.factors import factors
from fedquilt.methods.florg import florg


def beside(pair, scale):
    """``[s B^T, A]``, the one matrix of a client or the server."""
    return torch.cat([scale * pair.B.double().T, pair.A.double()], dim=1)


def test_the_servers_gram_matrix_is_the_best_of_its_rank_and_its_factors_are_aligned():
    """Against the dense mean of the Gram matrices, of which a block is the mean product, in every round."""
    scene = small(budgets=(4, 4, 4))
    scaling = scene.federation.scaling
    setup = Setup(florg(scene.federation), scene.federation.profiles, scene.clients)
    played, sent = recorded(setup, num_rounds=2)
    for number in range(2):
        before, after = (factors(played.states[at]["params"]) for at in (number, number + 1))
        here = in_round(sent, number)
        products, total = mean_change(here, scaling), sum(one.reply.weight for one in here)
        for module, server in before.items():
            scale, d_out = scaling(module, server.rank), len(server.B)
            roots = [beside(factors(one.reply.params)[module], scale) for one in here]
            gram = sum(one.reply.weight / total * root.T @ root for one, root in zip(here, roots, strict=True))
            torch.testing.assert_close(gram[:d_out, d_out:], products[module])
            values, vectors = torch.linalg.eigh(gram)
            best = (vectors[:, -server.rank :] * values[-server.rank :]) @ vectors[:, -server.rank :].T
            new, old = beside(after[module], scale), beside(server, scale)
            torch.testing.assert_close(new.T @ new, best, rtol=0, atol=1e-6)
            # nothing is left to rotate: with the last round's, it has a symmetric product without negative values
            cross = new @ old.T
            torch.testing.assert_close(cross, cross.T, rtol=0, atol=1e-6)
            assert float(torch.linalg.eigvalsh(cross).min()) >= 0
    assert all(bool(matrix.any()) for matrix in weights(played.states[-1]["params"], scaling).values())
