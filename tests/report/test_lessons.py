"""What students took of their teachers' paths: as rows of tables, and as plots by what they draw."""

from typing import Any

import pytest

from fedquilt.core.errors import RunError
from fedquilt.report.comparison import comparison
from fedquilt.report.figure import png
from fedquilt.report.lesson_plots import choice_plot, reward_plot, right_plot, sides_plot, traffic_plot
from fedquilt.report.lessons import lesson_rows, pupils
from fedquilt.report.page import page
from fedquilt.report.pictures import MAPS, draw
from fedquilt.report.plot import figures
from fedquilt.report.runs import read_run


def of_round(round_line: Any, number: int, taken: float) -> dict[str, Any]:
    """A round in which both clients and the server chose, and the server and the clients were scored."""
    told = {"taken": taken, "taken_right": taken / 2, "label_error": 0.25, "label_correlation": -taken}
    moved = [
        {
            "exchange": name,
            "clients": {
                "0": {"bytes_down": down, "bytes_up": 10, "settings": {}, "metrics": told if name == "fit" else {}},
                "1": {"bytes_down": down, "bytes_up": 20, "settings": {}, "metrics": {}},
            },
            "dropped": {},
        }
        for name, down in (("paths", 1000), ("fit", 2000))
    ]
    state = {"server_right": 0.75, "server_loss": 1.0, "client_1_taken": 1.0, "client_1_right": 0.5}
    own = {"accuracy": 0.1 * number + 0.5, "loss": 1.0, "examples": 6}
    line = round_line(number, None, {0: 0.25, 1: 0.35}, exchanges=moved, state=state)
    line["evaluation"]["server"] = own
    return line


@pytest.fixture
def taught(make_run, round_line):
    lines = [of_round(round_line, number, taken) for number, taken in enumerate((0.5, 1.0))]
    return read_run(make_run(lines, method="lada", server={"model": {"name": "arith-llama"}}))


def drawn(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): [round(float(value), 6) for value in line.get_ydata()] for line in axes.get_lines()}


def test_every_student_has_its_numbers_over_rounds(taught) -> None:
    client, server = pupils(taught)
    assert (client.student, client.teacher) == ("client 0", "server")
    assert client.numbers["taken"] == ([0, 1], [0.5, 1.0])
    assert client.numbers["offered_right"] == ([0, 1], [0.75, 0.75])
    assert (server.student, server.teacher) == ("server", "client 1")
    assert server.numbers == {"taken": ([0, 1], [1.0, 1.0]), "offered_right": ([0, 1], [0.5, 0.5])}


def test_tables_have_a_row_for_each_student(taught) -> None:
    client, server = lesson_rows({"lada": [taught]})
    assert client == {
        **{"label": "lada", "student": "client 0", "seeds": 1, "taken": 0.75, "offered_right": 0.75},
        **{"taken_right": 0.375, "label_error": 0.25, "label_correlation": -0.75},
    }
    assert (server["student"], server["taken"], server["label_error"]) == ("server", 1.0, None)
    text = comparison({"lada": [taught]})
    assert "What students took of the paths of their teachers, means over rounds:" in text
    assert ["lada", "client", "0", "1", "0.75", "0.75", "0.38", "0.25", "-0.75"] in [*map(str.split, text.splitlines())]
    assert "right of taken" in page({"lada": [taught]})


def test_the_choice_and_the_rewards_are_drawn_for_each_side(taught) -> None:
    clients, server = choice_plot(taught).axes
    assert (drawn(clients), drawn(server)) == ({"client 0": [0.5, 1.0]}, {"client 1": [1.0, 1.0]})
    assert list(clients.get_lines()[0].get_xdata()) == [1, 2]  # people count from 1
    assert clients.get_title(loc="left") == "clients, taught by the server"
    correlation, error = reward_plot(taught).axes
    assert (drawn(correlation), drawn(error)) == ({"client 0": [-0.5, -1.0]}, {"client 0": [0.25, 0.25]})


def test_right_paths_are_drawn_beside_all_that_were_offered(taught) -> None:
    (axes,) = right_plot(taught).axes
    taken, offered = axes.get_lines()
    assert ([*taken.get_ydata()], [*offered.get_ydata()]) == ([0.25, 0.5], [0.75, 0.75])
    assert (taken.get_linestyle(), offered.get_linestyle()) == ("-", "--")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["client 0"]


def test_the_servers_score_is_drawn_beside_the_clients(taught) -> None:
    (axes,) = sides_plot(taught).axes
    assert drawn(axes) == {"server": [50, 60], "client 0": [25, 25], "client 1": [35, 35]}
    assert axes.get_ylabel() == "accuracy (%)"


def test_bytes_are_drawn_for_each_exchange_and_direction(taught) -> None:
    (axes,) = traffic_plot(taught).axes
    assert drawn(axes) == {
        **{"paths, down": [2.0, 2.0], "paths, up": [0.03, 0.03]},
        **{"fit, down": [4.0, 4.0], "fit, up": [0.03, 0.03]},
    }
    assert axes.get_ylabel() == "sent in a round, all clients (KB)"


def test_the_page_has_one_picture_of_each(taught) -> None:
    names = [name for name, _ in figures({"lada": [taught]})]
    assert names[-5:] == ["server-and-clients-lada", "choice-lada", "bytes-lada", "right-paths-lada", "reward-lada"]
    for kind in ("server", "choice", "right", "reward", "traffic"):
        assert kind in MAPS
    assert png(draw({"lada": [taught]}, "choice"))


def test_a_run_without_a_server_has_none(make_run, round_line) -> None:
    run = read_run(make_run([round_line(0, 0.5)]))
    assert (pupils(run), lesson_rows({"fedit": [run]})) == ([], [])
    assert "students" not in comparison({"fedit": [run]})
    with pytest.raises(RunError, match="no student told 'taken'"):
        choice_plot(run)
    with pytest.raises(RunError, match="no score of a model that the server owns was recorded"):
        sides_plot(run)
