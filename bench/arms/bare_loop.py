"""PyTorch's loop over the clients of a round, on PEFT's modules, with a mean at its end: no framework."""

from __future__ import annotations

from task import Report, task_of_arguments


def main() -> None:
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    torch.set_num_threads(1)
    task = task_of_arguments()
    report, model, now = Report(task, "bare_loop"), task.model(), task.start()
    own = [tensor for tensor in model.parameters() if tensor.requires_grad]
    for number in range(task.rounds):
        losses, sums = {}, {name: torch.zeros_like(value) for name, value in now.items()}
        for client in task.clients:
            set_peft_model_state_dict(model, now)
            optimizer = torch.optim.AdamW(own, lr=task.settings["learning_rate"], weight_decay=0.0)
            losses[client] = task.trained(model, client, number, optimizer)
            for name, value in get_peft_model_state_dict(model).items():
                sums[name] += value.detach()
        now = {name: value / len(task.clients) for name, value in sums.items()}
        report.round(losses)
    report.write(now)


if __name__ == "__main__":
    main()
