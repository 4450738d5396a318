"""The task that every arm trains, read from the folder that ``whole.py`` has prepared; and what an arm reports.

Nothing here is fedquilt's: the base is a folder of transformers, LoRA is PEFT's, rows are arrays of numpy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Task:
    """The rows and steps of all clients, and the model with the tensors from which all arms start.

    Parameters
    ----------
    folder
        ``task.json``, ``rows.npz`` (by client: pixels, labels), ``steps.npz`` (by round and client: the row numbers of
        each step), ``model/``, and ``start.safetensors``, the tensors that are trained, by PEFT's names.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings: dict[str, Any] = json.loads((self.folder / "task.json").read_text())
        self.clients, self.rounds = range(self.settings["clients"]), self.settings["rounds"]
        self._rows = dict(np.load(self.folder / "rows.npz"))
        self._steps = dict(np.load(self.folder / "steps.npz"))
        self._kept: dict[int, tuple[Any, Any]] = {}

    def rows(self, client: int) -> tuple[Any, Any]:
        """A client's rows as the model takes them, normalised when they are first asked for, and their labels."""
        import torch

        if client not in self._kept:
            pixels = torch.from_numpy(self._rows[f"pixels-{client}"]).float().div(255).sub(0.5).div(0.5)
            labels = torch.from_numpy(self._rows[f"labels-{client}"])
            self._kept[client] = pixels[:, None].expand(-1, 3, -1, -1), labels
        return self._kept[client]

    def steps(self, number: int, client: int) -> Any:
        """The row numbers of a client's steps in a round, (steps, rows)."""
        import torch

        return torch.from_numpy(self._steps[f"{number}-{client}"])

    def model(self) -> Any:
        """The model with PEFT's LoRA at queries and values; only the adapter and the head are trained."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from transformers import ViTForImageClassification

        base = ViTForImageClassification.from_pretrained(self.folder / "model")
        config = LoraConfig(
            r=self.settings["rank"],
            lora_alpha=self.settings["alpha"],
            target_modules=self.settings["targets"],
            modules_to_save=["classifier"],
        )
        model = get_peft_model(base, config)
        set_peft_model_state_dict(model, self.start())
        return model

    def start(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.folder / "start.safetensors")

    def trained(self, model: Any, client: int, number: int, optimizer: Any) -> float:
        """Make a client's steps of a round, and return the mean loss: PyTorch's usual loop."""
        from torch.nn.functional import cross_entropy

        pixels, labels = self.rows(client)
        model.train()
        losses = []
        for rows in self.steps(number, client):
            optimizer.zero_grad()
            loss = cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)


class Report:
    """What an arm tells: the ends of its rounds, the clients' mean losses in each, and its last tensors."""

    def __init__(self, task: Task, arm: str) -> None:
        self.task, self.arm = task, arm
        self.ends: list[dict[str, float]] = []
        self.losses: list[dict[int, float]] = []

    def round(self, losses: dict[int, float]) -> None:
        """Note that a round has ended: the server has its new tensors."""
        self.losses.append(dict(losses))
        self.ends.append({"wall": time.time(), "cpu": spent()})

    def write(self, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        own = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        save_file(own, self._file("safetensors"))
        self._file("json").write_text(json.dumps({"ends": self.ends, "losses": self.losses}))

    def _file(self, kind: str) -> Path:
        return self.task.folder / f"{self.arm}.{kind}"


def spent() -> float:
    """The processor seconds of this process and of all that it has started, those that have ended included."""
    import psutil

    own = psutil.Process()
    now = own.cpu_times()
    seconds: float = now.user + now.system + now.children_user + now.children_system
    for process in own.children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def task_of_arguments() -> Task:
    """The task whose folder the first argument names, in a process of one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return Task(sys.argv[1])
