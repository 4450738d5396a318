"""What README and the documents show is true.

``python`` and ``bash`` blocks run, one after another, in a folder that holds the blocks with a ``title`` as files. A
sketch is marked ``py``. Commands that cannot run here are marked ``sh``; they are read by the program itself, as is
every ``fedquilt ...`` in a sentence. A TOML block is a whole run file, or a part that fits the schema.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import click
import jsonschema
import pytest
from doc_blocks import BESIDE, INLINE, PAGES, blocks, commands, name_of

from fedquilt.cli import main
from fedquilt.cli.reference_page import commands as known_commands
from fedquilt.config.json_schema import json_schema
from fedquilt.config.load import parse
from fedquilt.data.partition_schemes import SCHEMES
from fedquilt.data.vertical.deal import Dealing
from fedquilt.experiment import check
from fedquilt.methods import METHODS

FAST = ("README.md", "docs/python.md")
"""Pages whose Python is run by default; other pages, and commands, are slow."""
BY_CI = ("make ",)
"""Commands of README that CI runs; tests/arch/test_docs.py holds that."""
IN_SEVERAL_TERMINALS = ("docs/guide/two-organisations.md",)
"""Pages with programs that stay running; test_two_organisations.py carries them out."""


def runs():
    """Every page with blocks that run, and which of them."""
    for page in PAGES:
        name, python, bash = name_of(page), blocks(page, "python"), blocks(page, "bash")
        if name in IN_SEVERAL_TERMINALS:
            continue
        if python and name in FAST:
            yield pytest.param(page, ("python",), id=name)
        if bash or (python and name not in FAST):
            yield pytest.param(page, ("python", "bash"), id=f"{name}, commands", marks=pytest.mark.slow)


def done(command, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def with_few_rounds(command):
    """The words of a command; two rounds show that it runs."""
    words = [re.sub(r"^rounds=\d+", "rounds=2", word) for word in shlex.split(command)]
    runs = words[1] in ("run", "compare") and "--resume" not in words
    return [*words, "rounds=2"] if runs and "rounds=2" not in words else words


def run_command(command, monkeypatch):
    """``fedquilt`` in this process, where everything is imported already; anything else in a shell."""
    if command.startswith(BY_CI):
        return
    if shlex.split(command)[0].endswith("fedquilt"):
        monkeypatch.setattr(sys, "argv", with_few_rounds(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (None, 0), command
        return
    done(["bash", "-c", command], ".")


def test_readme_begins_with_python():
    assert blocks(PAGES[0])[0].language == "python"
    assert {"README.md", "docs/python.md"} <= {name_of(page) for page in PAGES if blocks(page, "python")}


@pytest.mark.parametrize(("page", "languages"), list(runs()))
def test_the_blocks_of_a_page_run_one_after_another(page, languages, tmp_path, monkeypatch, capfd):
    """The notebook below runs all rounds of README's first block."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page)):
        if block.file and block.language != "bash":
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text, "utf-8")
        elif block.language == "python" and block.language in languages:
            text = re.sub(r'(?<="rounds": )\d+', lambda found: str(min(2, int(found[0]))), block.text)
            file = tmp_path / f"block-{number}.py"
            file.write_text(text, "utf-8")
            exec(compile(text, str(file), "exec"), names)
        elif block.language == "bash" and block.language in languages:
            for command in commands(block.text):
                run_command(command, monkeypatch)
    assert capfd.readouterr().out


def shown():
    """Every command of fedquilt in a block, and whether it is whole; one in a sentence may lack its arguments."""
    for page in (*PAGES, *BESIDE):
        if page.name == "commands.md":
            continue
        for block in blocks(page, "", "sh", "bash", "text"):
            for line in commands(block.text):
                if re.match(r"(\.venv/bin/)?fedquilt [a-z]", line) and not line.endswith((".", ",")):
                    yield name_of(page), line, True
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.S | re.M)
        for found in INLINE.findall(prose):
            yield name_of(page), " ".join(found.split()), False


@pytest.mark.parametrize(("page", "command", "whole"), sorted(set(shown())))
def test_a_command_that_is_shown_is_one_that_the_program_has(page, command, whole):
    words = ["fedquilt", *shlex.split(command.replace("...", "").replace("[", "").replace("]", ""))[1:]]
    known = known_commands()
    name = next((" ".join(words[:end]) for end in (3, 2) if " ".join(words[:end]) in known), None)
    if name is None:
        groups = {" ".join(one.split()[:2]) for one in known}
        assert " ".join(words[:2]) in groups, f"{page}: there is no command `{command}`"
        return
    args = words[len(name.split()) :]
    if whole:
        known[name].make_context(name, args)  # raises click's UsageError
    else:
        context = click.Context(known[name], resilient_parsing=True)
        known[name].make_parser(context).parse_args(args)


def toml_blocks():
    for page in PAGES:
        for number, block in enumerate(blocks(page, "toml")):
            yield pytest.param(block.text, id=f"{name_of(page)}-{number}")


@pytest.fixture(scope="module")
def schema():
    """What judges parts of run files."""
    whole = json_schema(METHODS, {**SCHEMES, "vertical": Dealing})
    return jsonschema.Draft202012Validator({key: value for key, value in whole.items() if key != "required"})


@pytest.mark.parametrize("text", list(toml_blocks()))
def test_a_run_file_or_a_part_of_one_is_right(text, schema):
    """A whole file names its model."""
    values = tomllib.loads(text)
    if "model" in values:
        parse(values)
    else:
        schema.validate(values)


def runnable():
    for page in PAGES:
        for number, block in enumerate(blocks(page, "toml")):
            values = tomllib.loads(block.text)
            source = str(values.get("data", {}).get("source", ""))
            if "model" in values and source.split(":")[0] in ("sklearn", "arithmetic", "glyphs"):
                yield pytest.param(values, id=f"{name_of(page)}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize("values", list(runnable()))
def test_a_whole_run_file_passes_the_check(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check(parse(values)) == []
