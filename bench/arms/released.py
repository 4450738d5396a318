"""As Fed-HeLLo's released code does it: a copy of the model for each client, learning rate 0 where nothing is learned.

The whole state dict is the reply; the server averages all of it.
"""

from __future__ import annotations

import copy

from task import Report, task_of_arguments


def main() -> None:
    import torch
    from peft import get_peft_model_state_dict

    torch.set_num_threads(1)
    task = task_of_arguments()
    report, model = Report(task, "released"), task.model()
    for number in range(task.rounds):
        losses, replies = {}, []
        for client in task.clients:
            own = copy.deepcopy(model)
            groups = [{"params": [tensor]} for tensor in own.parameters() if tensor.requires_grad]
            optimizer = torch.optim.AdamW(groups, lr=task.settings["learning_rate"], weight_decay=0.0)
            losses[client] = task.trained(own, client, number, optimizer)
            replies.append(copy.deepcopy(own.state_dict()))
        model.load_state_dict({name: torch.stack([r[name] for r in replies]).mean(0) for name in replies[0]})
        report.round(losses)
    report.write(get_peft_model_state_dict(model))


if __name__ == "__main__":
    main()
