"""fedquilt.run of the task, with its record and a checkpoint on disk after every round."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from task import Report, task_of_arguments


def main() -> None:
    import fedquilt

    task, (arm, engine) = task_of_arguments(), sys.argv[2:]
    report = Report(task, arm)

    class Watch:
        def round(self, line: Mapping[str, Any]) -> None:
            sent = line["exchanges"][0]["clients"]
            report.round({int(client): one["metrics"]["loss"] for client, one in sent.items()})

    keys = json.loads((task.folder / "fedquilt.json").read_text()) | {"engine": json.loads(engine)}
    folder = task.folder / f"run-{arm}"
    fedquilt.run(keys, folder=folder, progress=Watch())

    from fedquilt.record import Record

    _, state, _ = Record(folder, {}).load_checkpoint()
    names = {name: f"base_model.model.{name}" for name in state["params"]}
    peft = {name: own if "lora" not in name else f"{own}.weight" for name, own in names.items()}
    report.write({peft[name]: value for name, value in state["params"].items()})


if __name__ == "__main__":
    main()
