"""A ClientApp of Flower as its LoRA examples write it, except that a worker keeps model and rows between calls.

Only the adapter and the head travel, by PEFT's state dict.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from task import Task

app = ClientApp()


@cache
def kept(folder: str) -> tuple[Task, Any]:
    """The task and the model, which a worker of Ray reads when it is first called."""
    import torch

    torch.set_num_threads(1)
    task = Task(folder)
    return task, task.model()


@app.train()
def train(message: Message, context: Context) -> Message:
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    config = message.content["config"]
    task, model = kept(str(config["folder"]))
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    own = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=task.settings["learning_rate"], weight_decay=0.0)
    client = int(context.node_config["partition-id"])
    loss = task.trained(model, client, int(config["server-round"]) - 1, optimizer)
    found = {name: value.detach() for name, value in get_peft_model_state_dict(model).items()}
    rows = len(task.rows(client)[1])
    metrics = MetricRecord({"loss": loss, "num-examples": rows, "partition": client})
    return Message(RecordDict({"arrays": ArrayRecord(found), "metrics": metrics}), reply_to=message)
