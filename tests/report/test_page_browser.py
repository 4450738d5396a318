"""The report page in a real browser: of each kind of run, light and dark, wide and narrow.

``FEDQUILT_SCREENSHOTS`` names a folder for its pictures. What follows an action is waited for (``expect``), never read
at once: a browser sends some events, such as the one of an opened ``details``, only after the click has returned.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedquilt.report.page import write_page
from fedquilt.report.runs import Run, read_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is on the PATH"),
    pytest.mark.slow,
]
SIZES = {"light": (1280, 900), "dark": (390, 844)}
DRAWN = ".drawing:not([hidden] *)"
EVIL = "</script><img src=x onerror=window.harmed=1><!-- {{7*7}} =cmd()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def expect() -> Any:
    return pytest.importorskip("playwright.sync_api", reason="playwright drives the browser").expect


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("FEDQUILT_SCREENSHOTS", tmp_path / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def shown(browser: Any, page: Path, theme: str = "light") -> Iterator[Any]:
    """The page in a browser of a theme's size; nothing may be logged, raised or asked of any network."""
    width, height = SIZES[theme]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    address = page.absolute().as_uri()
    tab.on(
        "request", lambda one: wrong.append(one.url) if not one.url.startswith((address, "blob:", "data:")) else None
    )
    tab.goto(address)
    yield tab
    assert wrong == []
    context.close()


def draw_all(tab: Any) -> int:
    """Scroll to every chart and wait until it is drawn; returns how many there are."""
    scroll = f"""async () => {{
        for (const place of document.querySelectorAll('{DRAWN}')) {{
            place.scrollIntoView({{behavior: 'instant'}});
            await new Promise(requestAnimationFrame);
        }}
    }}"""
    tab.evaluate(scroll)
    tab.wait_for_function(f"[...document.querySelectorAll('{DRAWN}')].every((one) => one.dataset.drawn)")
    empty = f"""() => [...document.querySelectorAll('{DRAWN}')].filter(
        (one) => !one.querySelector('svg .role-mark path, svg .role-mark line')).length"""
    assert tab.evaluate(empty) == 0
    assert tab.locator(".failed").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]
    tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    return int(tab.locator(DRAWN).count())


@pytest.fixture
def several(learning_run: Any) -> dict[str, list[Run]]:
    """Two methods over three seeds, with dropped replies, allocation and probabilities of layers."""
    return {
        label: [read_run(learning_run(label, seed, level, num_rounds=8)) for seed in (1, 2, 3)]
        for label, level in (("fed-hello", 0.8), ("fedit", 0.6))
    }


@pytest.fixture
def kinds(several: Any, grouped: Any, make_run: Any, round_line: Any) -> dict[str, Callable[[], dict[str, list[Run]]]]:
    def changed(folder: str, change: Callable[[dict[str, Any]], None], *lines: dict[str, Any], **more: Any) -> Run:
        path = make_run([*lines], folder=folder, **more)
        partition = json.loads((path / "partition.json").read_text())
        change(partition)
        (path / "partition.json").write_text(json.dumps(partition))
        return read_run(path)

    def one() -> dict[str, list[Run]]:
        return {"fedit": several["fedit"][:1]}

    def unlike() -> dict[str, list[Run]]:
        rounds = [{"vit": (0.1 * at, 0.2, 0.3), "bert": (0.5, 0.1 * at, 0.4)} for at in range(4)]
        return {"h2tune": [grouped(1, rounds)]}

    def common() -> dict[str, list[Run]]:
        state = {
            "agreement": {f"block.{at}": 0.3 + 0.1 * at for at in range(5)},
            "conflicts": 3,
            "cosines": [1.0, 0.5, -0.25, 0.5, 1.0, 0.1, -0.25, 0.1, 1.0],
        }
        lines = [round_line(at, 0.2 * at, {0: 0.3, 1: 0.1 * at}, state=state) for at in range(4)]
        return {"heterotune": [read_run(make_run(lines, folder="common", method="heterotune"))]}

    def taught() -> dict[str, list[Run]]:
        lines = []
        for at in range(4):
            told = {
                "taken": 0.4 + 0.1 * at,
                "taken_right": 0.9,
                "label_error": 0.2,
                "label_correlation": 0.3 * at - 0.4,
            }
            sent = {str(client): {"bytes_down": 900, "bytes_up": 90, "metrics": told} for client in range(2)}
            state = {"server_right": 0.75, "client_0_taken": 0.5, "client_0_right": 0.5, "client_0_taken_right": 0.6}
            moved = [{"exchange": "fit", "clients": sent, "dropped": {}}]
            lines.append(round_line(at, None, {0: 0.1 * at, 1: 0.35}, exchanges=moved, state=state))
            lines[-1]["evaluation"]["server"] = {"accuracy": 0.2 + 0.1 * at, "loss": 1.0, "examples": 6}
        return {"lada": [read_run(make_run(lines, folder="lada", method="lada", server={"model": {"name": "arith"}}))]}

    def vertical() -> dict[str, list[Run]]:
        names = ["zero", "one", "two", "three", "four"]
        kept = {"shop": [0.5, None, 1.0, 0.25, 0.75]}
        gate = {"shop": [0.25, 0.5, 0.0, 1.0, 0.5], "bank": [0.75, 0.5, 1.0, 0.0, 0.5]}
        alike = {name: [1.0 if other == name else -0.1 for other in names] for name in names}
        line = round_line(0, 0.5, state={"without shop": 0.25, "gate": gate, "prototype_cosines": alike, "kept": kept})
        line["evaluation"]["global"] |= {"worst_class": 0.25, "seen": 0.5, "unseen": 0.4, "harmonic": 0.45}

        def parties(partition: dict[str, Any]) -> None:
            partition["clients"][0]["group"] = "shop"
            partition["vertical"] = {"active": "bank", "aligned": {"one": 3}, "own": {"three": 7}, "test": 9}

        return {"proto-evfl": [changed("vertical", parties, line, method="proto-evfl", num_clients=1)]}

    def private() -> dict[str, list[Run]]:
        def spent(at: int) -> dict[str, Any]:
            both = {"epsilon": 0.5 * at + 1, "epsilon_secret_cohorts": 0.2 * at + 0.5}
            return {**both, "mode": "central", "delta": 1e-5, "test_key": False}

        lost = [{"exchange": "fit", "clients": {}, "dropped": {"2": "epsilon 4 is spent", "3": EVIL}}]
        lines = [round_line(at, 0.2 * at, {0: 0.3, 1: 0.4}, privacy=spent(at)) for at in range(3)]

        def names(partition: dict[str, Any]) -> None:
            for client in partition["clients"]:
                client["name"] = f"site {client['id']} {EVIL}"
            partition["classes"] = [EVIL, *partition["classes"]]
            partition["clients"][0]["labels"] = {EVIL: 5}

        lines.append(round_line(3, 0.4, {0: 0.3}, privacy=spent(3), exchanges=lost))
        return {EVIL: [changed("private", names, *lines, name=EVIL)]}

    return {
        "one": one,
        "several": lambda: several,
        "unlike": unlike,
        "common": common,
        "taught": taught,
        "vertical": vertical,
        "private": private,
    }


WANTED = {
    "one": {"global-over-rounds", "worst-and-best-client", "partition", "allocation-fedit", "probabilities-fedit"},
    "several": {"global-over-bytes", "personalised-over-rounds", "allocation-fed-hello", "bytes-fedit"},
    "unlike": {"groups-over-rounds"},
    "common": {"agreement-heterotune", "alignment-heterotune", "cosines-heterotune-0"},
    "taught": {"server-and-clients-lada", "choice-lada", "right-paths-lada", "right-offered-lada", "reward-lada"},
    "vertical": {"parties", "gate-proto-evfl", "prototypes-proto-evfl", "kept-proto-evfl"},
    "private": {"privacy-over-rounds", "global-over-rounds", "partition"},
}


@pytest.mark.parametrize("kind", WANTED)
def test_every_kind_of_run_is_drawn(kind: str, kinds: Any, browser: Any, pictures: Path, tmp_path: Path) -> None:
    path = write_page(kinds[kind](), tmp_path / f"{kind}.html")
    for theme, (width, _) in SIZES.items():
        with shown(browser, path, theme) as tab:
            assert draw_all(tab) >= len(WANTED[kind])
            names = {one.get_attribute("data-chart") for one in tab.locator("figure.chart").all()}
            assert WANTED[kind] <= names
            assert not tab.evaluate("window.harmed")
            tab.screenshot(path=pictures / f"{kind}-{width}-{theme}.png", full_page=True)


@pytest.fixture
def page(several: Any, tmp_path: Path) -> Path:
    return write_page(several, tmp_path / "page.html", references=["fedit"])


def test_the_theme_is_switched_and_remembered(page: Path, browser: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    colour = "document.querySelector('figure .role-axis-label text').getAttribute('fill')"
    with shown(browser, page) as tab:
        draw_all(tab)
        before = [tab.evaluate(one) for one in (ground, colour)]
        tab.get_by_role("button", name="Switch to the dark theme").click()
        tab.wait_for_function(f"before => {colour} !== before", arg=before[1])
        assert tab.evaluate(ground) != before[0]
        tab.reload()
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
        assert tab.evaluate(ground) != before[0]
        tab.get_by_role("button", name="Switch to the light theme").click()
        tab.wait_for_function(f"before => {ground} === before", arg=before[0])


def test_clients_are_found_and_put_in_order(page: Path, browser: Any, expect: Any) -> None:
    with shown(browser, page) as tab:
        cards, said = tab.locator(".card:visible"), tab.locator("form.filter output")
        expect(cards).to_have_count(12)
        tab.get_by_label("Find").fill("6 layers")
        expect(said).to_have_text("4 of 12 shown")
        expect(cards).to_have_count(4)
        tab.get_by_label("Find").fill("no such client")
        expect(cards).to_have_count(0)
        tab.get_by_label("Find").fill("")
        expect(cards).to_have_count(12)
        scores = sorted(float(one.get_attribute("data-score")) for one in cards.all())
        tab.get_by_label("Order").select_option("best score first")
        expect(cards.first).to_have_attribute("data-score", f"{scores[-1]:.6g}")
        tab.get_by_label("Order").select_option("worst score first")
        expect(cards.first).to_have_attribute("data-score", f"{scores[0]:.6g}")
        assert [float(one.get_attribute("data-score")) for one in cards.all()] == scores


def test_the_cards_are_of_the_seed_that_is_chosen(page: Path, browser: Any, expect: Any) -> None:
    with shown(browser, page) as tab:
        cards, said = tab.locator(".card:visible"), tab.locator("form.filter output")
        seed = tab.get_by_role("combobox", name="Seed")
        expect(said).to_have_text("12 of 12 shown")
        own = {}
        for number in ("1", "2", "3"):
            seed.select_option(number)
            expect(cards.first).to_have_attribute("data-seed", number)
            expect(cards).to_have_count(12)
            own[number] = [one.get_attribute("data-score") for one in cards.all()]
            drawing = cards.first.locator(".drawing").first
            drawing.scroll_into_view_if_needed()
            expect(drawing.locator("svg .role-mark path").first).to_be_attached()
        assert len({*map(tuple, own.values())}) == 3
        tab.get_by_label("Find").fill("6 layers")
        expect(said).to_have_text("4 of 12 shown")
        tab.get_by_text("All clients as a table").click()
        expect(tab.get_by_role("table", name="All clients").locator("tbody tr")).to_have_count(36)


def test_tables_are_sorted_by_mouse_and_by_keys(page: Path, browser: Any, expect: Any) -> None:
    with shown(browser, page) as tab:
        table = tab.get_by_role("table", name="Runs", exact=True)
        head = table.get_by_role("columnheader", name="global, final")
        at = [one.inner_text().strip() for one in table.locator("thead th").all()].index("global, final")
        expect(head).to_have_attribute("aria-sort", "none")
        head.get_by_role("button").click()

        def values() -> list[float]:
            return [float(one.inner_text()) for one in table.locator(f"tbody tr > :nth-child({at + 1})").all()]

        expect(head).to_have_attribute("aria-sort", "ascending")
        assert len(values()) == 6
        assert values() == sorted(values())
        head.get_by_role("button").focus()
        tab.keyboard.press("Enter")
        expect(head).to_have_attribute("aria-sort", "descending")
        assert values() == sorted(values(), reverse=True)
        table.get_by_role("button", name="upload", exact=True).click()
        expect(head).to_have_attribute("aria-sort", "none")


def test_numbers_and_pictures_are_saved(page: Path, browser: Any, expect: Any, tmp_path: Path) -> None:
    with shown(browser, page) as tab:
        figure = tab.locator("#chart-global-over-rounds")
        figure.scroll_into_view_if_needed()
        found = {}
        for kind in ("CSV", "SVG", "PNG"):
            with tab.expect_download() as saved:
                figure.get_by_role("button", name=kind).click()
            assert saved.value.suggested_filename == f"global-over-rounds.{kind.lower()}"
            saved.value.save_as(tmp_path / kind)
            found[kind] = (tmp_path / kind).read_bytes()
        head, *rows = csv.reader(found["CSV"].decode().splitlines())
        assert head == ["method", "round", "accuracy (%)", "low", "high"]
        assert {row[0] for row in rows} == {"fed-hello", "fedit"}
        assert float(rows[-1][3]) < float(rows[-1][2]) < float(rows[-1][4])
        assert found["SVG"].startswith(b"<svg")
        assert found["PNG"][:8] == b"\x89PNG\r\n\x1a\n"
        figure.locator("summary").click()
        expect(figure.locator("table tbody tr")).to_have_count(len(rows))
        with tab.expect_download() as saved:
            tab.get_by_role("button", name="Save the table Runs as CSV").click()
        assert saved.value.suggested_filename == "runs.csv"


def test_the_page_can_be_read_without_seeing_it_and_used_without_a_mouse(page: Path, browser: Any, expect: Any) -> None:
    with shown(browser, page) as tab:
        for role in ("banner", "navigation", "main", "contentinfo", "search"):
            assert tab.get_by_role(role).count() == 1
        levels = [int(one.evaluate("one => one.tagName[1]")) for one in tab.locator("h1, h2, h3").all()]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        for one in tab.locator("[role=img]").all():
            assert one.get_attribute("aria-label")
        tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        expect(tab.locator("details.numbers:not(:has(table))")).to_have_count(0)
        named = """() => [...document.querySelectorAll('[role=region], section')].map((one) =>
            one.ariaLabel ?? document.getElementById(one.getAttribute('aria-labelledby')).textContent)"""
        landmarks = tab.evaluate(named)
        assert len(landmarks) > 10
        assert len({*landmarks}) == len(landmarks)  # a list of landmarks tells them apart
        for table in tab.locator("main table").all():
            assert table.locator("caption").text_content()
            assert table.locator("th:not([scope])").count() == 0
        tab.keyboard.press("Tab")
        first = tab.locator(":focus")
        expect(first).to_have_text("Skip to the content")
        assert first.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
        assert first.bounding_box()["x"] >= 0
        tab.keyboard.press("Enter")
        expect(tab).to_have_url(re.compile("#main$"))


def test_a_saved_file_holds_no_formula_and_leaves_numbers_as_they_are(
    several: dict[str, list[Run]], browser: Any, tmp_path: Path
) -> None:
    labels = ["-2+3+cmd|' /C calc'!A0", "+1;=HYPERLINK(A1)", "=1+1", "\n=1+1", "-12.5 KB", "+0.3 ± 0.1"]
    write_page(dict.fromkeys(labels, several["fedit"][:1]), tmp_path / "page.html")
    with shown(browser, tmp_path / "page.html") as tab:
        with tab.expect_download() as saved:
            tab.locator("#chart-global-over-rounds").get_by_role("button", name="CSV").click()
        saved.value.save_as(tmp_path / "numbers.csv")
    text = (tmp_path / "numbers.csv").read_bytes().decode()
    _, *rows = csv.reader(text.splitlines(keepends=True))
    assert [*dict.fromkeys(row[0] for row in rows)] == [*(f"'{one}" for one in labels[:4]), *labels[4:]]
    assert '"\'+1;=HYPERLINK(A1)",' in text  # a semicolon begins a cell in half of the world
