import hashlib
import json
import re
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.report.cards import MOST_CARDS
from fedquilt.report.document import document
from fedquilt.report.page import page, write_page
from fedquilt.report.runs import read_run

VOID = ("meta", "input")


class Found(HTMLParser):
    """Every tag with its attributes, and the content of scripts and styles; complains of tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data):
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]][-1] += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    @property
    def data(self) -> dict:
        """The charts."""
        return json.loads(self.inside["script"][0])


@pytest.fixture
def groups(learning_run):
    return {
        label: [read_run(learning_run(label, seed, level, num_rounds=6, note="<b>&")) for seed in (1, 2, 3)]
        for label, level in (("fed-hello", 0.8), ("fedit", 0.6))
    }


def test_the_page_holds_everything_and_refers_to_nothing(groups, tmp_path):
    path = write_page(groups, tmp_path / "new" / "report.html", last=2, references=["fedit"])
    text = path.read_text(encoding="utf-8")
    found = Found(text)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "img")
        assert attributes.get("href", "#").startswith("#")
        assert not {"src", "srcset", "style"} & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]
    charts = found.data["charts"]
    wanted = {"global-over-rounds", "global-over-bytes", "partition", "allocation-fed-hello", "allocation-fedit"}
    assert wanted | {"worst-and-best-client", "client-scores", "client-labels", "bytes-fedit"} <= charts.keys()
    for chart in charts.values():
        assert chart["rows"]
        assert {len(row) for row in chart["rows"]} == {len(chart["fields"])} == {len(chart["heads"])}
        assert chart["spec"] < len(found.data["specs"]) < len(charts)
    band = charts["global-over-rounds"]["rows"][-1]
    assert band[0] == "fedit"
    assert band[3] < band[2] < band[4]
    assert "Paired over seeds against fedit, global" in text
    assert "separates" in text
    assert "loss is nan at step 3" in text
    assert "fed-hello, seed 1: config" in text
    assert "fed-hello, seed 1: environment" in text
    assert "3.12.1" in text


def test_the_same_runs_give_the_same_page(groups):
    assert page(groups) == page(groups)


def test_only_the_scripts_and_the_style_of_the_page_are_allowed(groups):
    text = page(groups)
    found = Found(text)
    (policy,) = (own["content"] for _, own in found.tags if own.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    _, *scripts = found.inside["script"]  # the first is data
    assert len(scripts) == 2

    def digest(content):
        return f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [digest(script) for script in scripts]
    assert rules["style-src"].split() == [digest(style) for style in found.inside["style"]]
    assert "unsafe" not in policy
    assert "connect-src" not in rules


def test_text_of_the_run_is_escaped(groups):
    evil = "</script><script>alert(1)</script><!-- \u2028 \ud800"
    text = page({evil: groups["fedit"]}, title="a < b & c")
    found = Found(text)
    assert "alert(1)</script>" not in text
    assert len(found.inside["script"]) == 3
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<title>a &lt; b &amp; c</title>" in text
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text
    rows = found.data["charts"]["global-over-rounds"]["rows"]
    assert rows[0][0] == evil
    raw = re.search(r'id="page-data">(.*?)</script>', text)[1]
    assert not set("<>&\u2028") & set(raw)
    assert document("t", "", "{}").isascii() or "\u2028" not in document("t", "", "{}")


def test_the_keys_of_a_run_are_not_on_its_page(groups):
    (run, *_) = groups["fedit"]
    run = replace(
        run, environment={**run.environment, "run_key": "0123abcd", "cohort_key": "feed4321", "engine": "own"}
    )
    text = page({"fedit": [run]})
    assert "&quot;engine&quot;: &quot;own&quot;" in text
    assert "0123abcd" not in text
    assert "feed4321" not in text


def test_the_page_has_the_commands_that_make_the_runs_again(made):
    text = page({"fedit": [made("fedit", seed, [0.1]) for seed in (1, 2)]})
    assert "fedquilt run fedit.toml --folder again/fedit-seed1" in text
    assert "fedquilt run fedit.toml seed=2 --folder again/fedit-seed2" in text


def test_of_many_clients_the_first_the_worst_and_the_best_have_cards(make_run, round_line):
    scores = {client: client / 5000 for client in range(3000)}
    lost = [{"exchange": "fit", "clients": {}, "dropped": {str(client): "<late>" for client in range(2000)}}]
    run = read_run(make_run([round_line(0, 0.5, scores), round_line(1, 0.5, exchanges=lost)], num_clients=3000))
    text = page({"fedit": [run]})
    cards = [int(own["data-id"]) for tag, own in Found(text).tags if tag == "article"]
    assert len(cards) <= MOST_CARDS
    assert {0, 1, 2998, 2999} <= set(cards)
    assert "Of 3,000 clients the first have cards, and those that score worst and best" in text
    assert "The first 100 of 3,000 clients are shown" in text
    assert "The first 500 of 2,000 lines" in text
    assert len(text) < 2_000_000


def test_a_page_of_one_unfinished_run(make_run, round_line):
    run = read_run(make_run([round_line(0, None, {0: 0.5, 1: 0.25})], finished=False))
    text = page({"fed-hello": [run]})
    Found(text)
    assert "1 (unfinished)" in text
    assert "37.5" in text
    assert ">global</th>" not in text


def test_nothing_given_and_nowhere_to_write(groups, tmp_path):
    with pytest.raises(RunError, match="no run was given, so there is no page to write"):
        page({})
    with pytest.raises(ConfigError, match="reference = 'x' is not known"):
        page(groups, references=["x"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*Give another path for the page"):
        write_page(groups, tmp_path / "file" / "page.html")
