"""Caveats of a comparison."""

from fedquilt.report.caveats import notes
from fedquilt.report.round_text import notices
from fedquilt.report.runs import read_run


def test_notes_list_the_differences_between_labels(made, groups):
    assert notes({"fedit": groups["fedit"], "ours": groups["ours"]}) == []
    other = made("other", 9, [0.1, 0.2, 0.3], finished=False, digest="d2")
    same = made("same", 9, [0.1, 0.2, 0.3])
    text = "\n".join(notes({"fedit": groups["fedit"], "other": [other], "same": [same]}))
    assert "not run with the same seeds (fedit: 1, 2, 3; other: 9; same: 9)" in text
    assert "same number of rounds (fedit: 2; other: 3; same: 3)" in text
    assert "other: unfinished at seed 9" in text
    assert "do not share one partition of the data at seed 9." in text


def test_a_training_that_diverged_at_the_server_is_told_in_its_round_and_of_the_run(make_run, round_line):
    states = [{"server_loss": 0.5}, {"server_diverged": 1.0, "arith-llama_loss": 0.4}, {"server_diverged": 1.0}]
    lines = [{**round_line(number, 0.5), "state": state} for number, state in enumerate(states)]
    assert notices(lines[0]) == []
    assert notices(lines[1]) == ["training of 'server' at the server diverged; it stays as it was"]
    (said,) = notes({"fedmkt": [read_run(make_run(lines))]})
    assert "seed 1: training of 'server' at the server diverged in rounds 2-3: a loss or a gradient was not" in said
