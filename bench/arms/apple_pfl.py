"""Apple's pfl: its FederatedAveraging on its SimulatedBackend, in one process.

The model is a module with ``loss`` and ``metrics``; pfl takes the parameters that need gradients, so that the frozen
base does not travel. Nothing is evaluated: ``metrics`` is empty.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from task import Report, Task, task_of_arguments


class Wrapped(torch.nn.Module):
    """The model with the loss that pfl asks for."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def loss(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.model.train()
        loss = torch.nn.functional.cross_entropy(self.model(pixel_values=pixels).logits, labels)
        self.losses.append(loss.item())
        return loss

    def metrics(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        return {}


class Rounds(TrainingProcessCallback):
    """Notes the end of each round."""

    def __init__(self, task: Task, wrapped: Wrapped) -> None:
        self.report, self.wrapped = Report(task, "apple_pfl"), wrapped

    def after_central_iteration(self, metrics: Metrics, model: Any, *, central_iteration: int) -> tuple[bool, Metrics]:
        steps = torch.tensor(self.wrapped.losses).view(len(self.report.task.clients), -1)
        self.report.round(dict(enumerate(steps.mean(1).tolist())))
        self.wrapped.losses.clear()
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    task = task_of_arguments()
    wrapped = Wrapped(task.model())
    own = [tensor for tensor in wrapped.parameters() if tensor.requires_grad]
    rows = {client: task.rows(client) for client in task.clients}
    rounds = Rounds(task, wrapped)

    def dataset(client: int) -> Dataset:
        """A client's rows in the order in which this round's steps take them."""
        order = task.steps(len(rounds.report.ends), client).reshape(-1)
        pixels, labels = rows[client]
        return Dataset([pixels[order], labels[order]], user_id=str(client))

    users = cycle(task.clients)
    data = FederatedDataset(dataset, lambda: next(users))
    rate = task.settings["learning_rate"]

    def local(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW((tensor for tensor in parameters if tensor.requires_grad), lr=lr, weight_decay=0.0)

    model = PyTorchModel(wrapped, local, torch.optim.SGD(own, lr=1.0))
    settings = NNAlgorithmParams(
        central_num_iterations=task.rounds,
        evaluation_frequency=task.rounds + 1,
        train_cohort_size=len(task.clients),
        val_cohort_size=0,
    )
    training = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=rate, local_batch_size=task.settings["batch_size"]
    )
    FederatedAveraging().run(settings, SimulatedBackend(data, data), model, training, None, callbacks=[rounds])

    from peft import get_peft_model_state_dict

    rounds.report.write(get_peft_model_state_dict(wrapped.model))


if __name__ == "__main__":
    main()
