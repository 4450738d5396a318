"""The tasks that a model can be fine-tuned for, each as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

IGNORED = -100
"""The label of tokens that do not count in the loss."""


@dataclass(frozen=True)
class Task:
    """What a model is fine-tuned for; other code asks these attributes and never compares names of tasks.

    Attributes
    ----------
    reads
        What a row's input is: an image, a text, or columns of numbers and categories.
    labels
        What is learned of a row. For texts ``models.reading.ENCODERS`` has an encoder for each kind of label, and
        ``client.task.SCORINGS`` has its loss and accuracy:

        - ``"class"``: the row's class, by a model whose head has one output for each class;
        - ``"completion"``: the next tokens of a text, which the model can also generate.
    auto_class
        The class of transformers that loads models for the task; for rows of tables one of ``models.mlp``.
    peft_type
        The ``task_type`` in a PEFT config; None where PEFT has none for the task.
    """

    reads: Literal["image", "text", "table"]
    labels: Literal["class", "completion"]
    auto_class: str
    peft_type: str | None

    @property
    def has_classes(self) -> bool:
        """Whether the model is a classifier: its head has an output for each class of the data."""
        return self.labels == "class"

    @property
    def writes(self) -> bool:
        """Whether the model is a language model, which completes prompts."""
        return self.labels == "completion"


TASKS: Mapping[str, Task] = {
    "image-classification": Task("image", "class", "AutoModelForImageClassification", None),
    "sequence-classification": Task("text", "class", "AutoModelForSequenceClassification", "SEQ_CLS"),
    "tabular-classification": Task("table", "class", "AutoModelForTabularClassification", None),
    "causal-lm": Task("text", "completion", "AutoModelForCausalLM", "CAUSAL_LM"),
}
"""Every task by its name in the run file."""

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


def tasks_where(holds: Callable[[Task], bool]) -> tuple[str, ...]:
    """The names of the tasks for which ``holds`` is true."""
    return tuple(name for name, task in TASKS.items() if holds(task))


def writing_task() -> str:
    """The name of the task of models that write text, such as a server's."""
    return tasks_where(lambda task: task.writes)[0]


def one_of(names: Sequence[str]) -> str:
    """The names, each in quotes, joined by "or"."""
    return " or ".join(f"'{name}'" for name in names)
