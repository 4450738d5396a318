"""The table of tasks is what a run file may name, and whatever is kept by task or by kind of label follows it."""

import re

import pytest
from project_sources import ROOT

from fedquilt.client.task import SCORINGS
from fedquilt.config.schema import Config, Model
from fedquilt.config.sections import read
from fedquilt.core.tasks import TASKS, one_of, tasks_where
from fedquilt.models.hf_files import auto_class
from fedquilt.models.reading import ENCODERS

SPECIFIC = {
    "src/fedquilt/core/tasks.py",  # the table
    "src/fedquilt/config/repair.py",  # a value that stands in for one that is missing
    "src/fedquilt/models/tiny.py",  # makes a model of one kind
    "src/fedquilt/cli/doctor.py",  # loads one shipped model
    "src/fedquilt/report/model_card.py",  # the Hub has words of its own, some of them the same
}
"""Files that may name a task: those that are about one, and do not ask which one they have."""


def test_the_run_file_takes_the_tasks_of_the_table():
    schema = Config.model_json_schema()
    assert schema["$defs"]["Model"]["properties"]["task"]["enum"] == list(TASKS)
    for name in TASKS:
        assert read(Model, {"name": "m", "task": name}, "model").task == name


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_loader_an_encoder_and_a_loss(name):
    task = TASKS[name]
    assert len(auto_class(name)._model_mapping) > 0
    assert task.labels in SCORINGS
    assert task.reads == "image" or task.labels in ENCODERS


def test_every_peft_type_is_one_of_pefts():
    peft = pytest.importorskip("peft")
    assert {task.peft_type for task in TASKS.values()} - {None} <= {kind.value for kind in peft.TaskType}


def test_names_are_listed_as_they_stand_in_errors():
    assert one_of(["image-classification"]) == "'image-classification'"
    assert one_of(["sequence-classification", "causal-lm"]) == "'sequence-classification' or 'causal-lm'"
    assert tasks_where(lambda task: task.writes) == ("causal-lm",)
    assert tasks_where(lambda task: task.reads == "image") == ("image-classification",)


def test_no_other_code_asks_for_a_task_by_its_name():
    quoted = re.compile("|".join(f'(?<!`)"{name}"(?!`)' for name in TASKS))
    for path in sorted((ROOT / "src").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        code = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.S)
        assert where in SPECIFIC or not quoted.search(code), f"{where} asks for a task by its name; ask its Task"
