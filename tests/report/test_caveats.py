"""Caveats of a comparison."""

from fedquilt.report.caveats import notes


def test_notes_list_the_differences_between_labels(made, groups):
    assert notes({"fedit": groups["fedit"], "ours": groups["ours"]}) == []
    other = made("other", 9, [0.1, 0.2, 0.3], finished=False, digest="d2")
    same = made("same", 9, [0.1, 0.2, 0.3])
    text = "\n".join(notes({"fedit": groups["fedit"], "other": [other], "same": [same]}))
    assert "not run with the same seeds (fedit: 1, 2, 3; other: 9; same: 9)" in text
    assert "same number of rounds (fedit: 2; other: 3; same: 3)" in text
    assert "other: unfinished at seed 9" in text
    assert "do not share one partition of the data at seed 9." in text
