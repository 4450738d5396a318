from pathlib import Path

from fedquilt.cli.reference_page import commands, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_commands_is_that_of_the_program():
    written = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert written == page(), "run `python -m fedquilt.cli.reference_page > docs/commands.md`"


def test_every_command_stands_in_the_page_with_a_text_for_each_argument_and_option():
    assert {"fedquilt run", "fedquilt site certs", "fedquilt pretrain glyphs"} <= set(commands())
    text = page()
    for name, command in commands().items():
        assert f"\n## {name}\n" in text
        assert command.help, name
    rows = [line for line in text.splitlines() if line.startswith(("| `", "| --"))]
    assert len(rows) > 60
    assert not [row for row in rows if row.endswith("|  |")]
