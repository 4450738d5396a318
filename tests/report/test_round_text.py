import pytest

from fedquilt.report.round_text import dropped_texts, duration, left_text, round_text


def line(**more):
    clients = {"1": {"metrics": {}}, "4": {"metrics": {}}}
    found = {"exchanges": [{"exchange": "fit", "clients": clients}], "evaluation": None, "seconds": 1.0}
    return found | more


def test_a_round_of_clients_that_tell_no_loss_says_how_many_replied_and_what_was_spent():
    assert round_text(line(privacy={"epsilon": 3.14159})) == "2 clients replied, epsilon 3.14, 1.0 s"
    assert round_text(line(privacy={"epsilon": None})) == "2 clients replied, no epsilon, 1.0 s"
    assert round_text(line()) == "2 clients replied, 1.0 s"
    assert round_text(line(exchanges=[])) == "nobody trained, 1.0 s"


def test_a_private_run_shows_its_epsilon_in_every_round(command):
    said = command(
        "run", "tiny.toml", "method.weighting=uniform", "privacy.mode=central", "privacy.noise_multiplier=8.0"
    )
    assert said.code == 0, said.err
    rounds = [text for text in said.err.splitlines() if text.startswith("tiny: round")]
    assert len(rounds) == 3
    assert all(": 4 clients replied, " in text and ", epsilon " in text for text in rounds)


def test_a_wish_that_cannot_be_met_names_the_key_and_the_way_out(command):
    said = command("run", "tiny.toml", "privacy.mode=central")
    assert said.code != 0
    assert "set method.weighting = 'uniform'" in said.err
    assert "Traceback" not in said.err
    said = command("check", "tiny.toml", "privacy.secure_aggregation=true")
    assert said.code != 0
    assert "Flower has secure aggregation for its legacy interface only" in " ".join(said.err.split())


def test_who_was_dropped_is_called_by_name_where_the_data_have_one():
    line = {"exchanges": [{"dropped": {"0": "is away", "1": "loss is nan"}}], "names": {"1": "Chur"}}
    assert dropped_texts(line) == ["client 0 dropped: is away", "client Chur dropped: loss is nan"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (5940, "99 min"),
        (5990, "1 h 40 min"),
        (47.9 * 3600, "47 h 54 min"),
        (100 * 3600, "4 days 4 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds, words):
    assert duration(seconds) == words


def test_the_time_left_is_told_where_it_is_worth_an_estimate():
    assert left_text(9.9) == left_text(-1) == ""
    assert left_text(600) == "about 10 min left"
    assert left_text(600, 3) == "about 10 min left of 3 runs"
    assert round_text(line(seconds_left=600.0, runs_left=2)).endswith("1.0 s, about 10 min left of 2 runs")
    assert round_text(line(seconds_left=600.0), brief=True) == round_text(line(), brief=True)
