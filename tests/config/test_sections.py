"""Sections that are dataclasses, as tables of a run file that set some of their keys."""

import pickle
import subprocess
import sys
import tomllib

from fedquilt.config.load import parse

FILE = """
model = { name = "tiny:vit", task = "image-classification" }
data = { source = "sklearn:digits" }
training = { steps = 2 }

[[groups]]
label = "a"
budget = 1
adapter = { rank = 3 }
training = { batch_size = 4 }

[[groups]]
label = "b"
budget = 2
"""


def test_a_config_with_groups_can_be_sent_to_another_process() -> None:
    config = parse(tomllib.loads(FILE))
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.groups[0].adapter.model_fields_set == {"rank"}
    assert again.groups[0].training.model_fields_set == {"batch_size"}
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).groups[0].adapter.rank)"
    sent = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(config), capture_output=True, check=False)
    assert sent.stdout.decode().strip() == "3", sent.stderr.decode()
