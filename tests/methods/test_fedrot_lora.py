"""FedRot-LoRA on real clients: every product as it was sent, and factors nearer to the server's than they were."""

from __future__ import annotations

import torch
from promises import Setup
from recording import in_round, recorded, weights
from scipy.linalg import orthogonal_procrustes
from small_federation import small

from fedquilt.core.factors import factors
from fedquilt.methods.fedrot_lora import fedrot_lora


def test_the_servers_factors_are_the_mean_of_those_that_scipy_rotates():
    """In every round, by the definition; B counts with its scale."""
    scene = small(budgets=(4, 4, 4))
    scaling = scene.federation.scaling
    setup = Setup(fedrot_lora(scene.federation), scene.federation.profiles, scene.clients)
    played, sent = recorded(setup, num_rounds=2)
    for number in range(2):
        before, after = (factors(played.states[at]["params"]) for at in (number, number + 1))
        here = in_round(sent, number)
        total = sum(one.reply.weight for one in here)
        for module, server in before.items():
            scale, mean_b, mean_a = scaling(module, server.rank), 0.0, 0.0
            for one in here:
                b, a = (tensor.double() for tensor in factors(one.reply.params)[module])
                own, target = (torch.cat([scale * p[0].double(), p[1].double().T]) for p in ((b, a), server))
                turn = torch.as_tensor(orthogonal_procrustes(own.numpy(), target.numpy())[0])
                mean_b = mean_b + one.reply.weight / total * b @ turn
                mean_a = mean_a + one.reply.weight / total * turn.T @ a
            torch.testing.assert_close(after[module].B.double(), mean_b, rtol=0, atol=1e-6)
            torch.testing.assert_close(after[module].A.double(), mean_a, rtol=0, atol=1e-6)
    assert all(bool(matrix.any()) for matrix in weights(played.states[-1]["params"], scaling).values())
