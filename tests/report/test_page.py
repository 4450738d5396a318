import base64
import re
from html.parser import HTMLParser

import pytest

from fedquilt.core.errors import ConfigError, RunError
from fedquilt.report.page import page, write_page
from fedquilt.report.plot import figures
from fedquilt.report.runs import read_run


class Found(HTMLParser):
    """Every tag with its attributes; complains of tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def groups(learning_run):
    return {
        label: [read_run(learning_run(label, seed, level, num_rounds=6, note="<b>&")) for seed in (1, 2, 3)]
        for label, level in (("fed-hello", 0.8), ("fedit", 0.6))
    }


def test_the_page_holds_everything_and_refers_to_nothing(groups, tmp_path):
    path = write_page(groups, tmp_path / "new" / "report.html", last=2, references=["fedit"])
    text = path.read_text(encoding="utf-8")
    tags = Found(text).tags
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object", "a")
        for key in ("src", "href", "srcset", "data"):
            assert attributes.get(key, "data:").startswith("data:")
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?://|url\(|@import|//[a-z]", without_pictures)
    pictures = {attributes["alt"]: attributes["src"] for tag, attributes in tags if tag == "img"}
    assert [*pictures] == [name.replace("-", " ") for name, _ in figures(groups)]
    assert {"global over rounds", "partition", "allocation fed hello", "allocation fedit"} <= pictures.keys()
    for picture in pictures.values():
        assert base64.b64decode(picture.removeprefix("data:image/png;base64,"))[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Paired over seeds against fedit, global" in text
    assert "separates" in text
    assert "loss is nan at step 3" in text
    assert "fed-hello, seed 1: config" in text
    assert "fed-hello, seed 1: environment" in text
    assert "3.12.1" in text


def test_text_of_the_run_is_escaped(groups):
    text = page({"<script>alert(1)</script>": groups["fedit"]}, title="a < b & c")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<title>a &lt; b &amp; c</title>" in text
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text


def test_a_page_of_one_unfinished_run(make_run, round_line):
    run = read_run(make_run([round_line(0, None, {0: 0.5, 1: 0.25})], finished=False))
    text = page({"fed-hello": [run]})
    Found(text)
    assert "1 (unfinished)" in text
    assert "37.5" in text
    assert "<th>global</th>" not in text


@pytest.mark.usefixtures("no_pictures")
def test_nothing_given_and_nowhere_to_write(groups, tmp_path):
    with pytest.raises(RunError, match="no run was given, so there is no page to write"):
        page({})
    with pytest.raises(ConfigError, match="reference = 'x' is not known"):
        page(groups, references=["x"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*Give another path for the page"):
        write_page(groups, tmp_path / "file" / "page.html")
