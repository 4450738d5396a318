"""The documentation's site, as CI builds it, and its first pages in a real browser."""

import re
import shutil
import subprocess
import sys

import pytest
from doc_blocks import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_a_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    assert (site / "repository" / "src" / "fedquilt" / "core" / "loop.py.html") not in pages  # linked files alone
    assert (site / "repository" / "src" / "fedquilt" / "aggregate" / "mean.py.html") in pages
    loads = re.compile(r'<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)="?(?:https?:)?//')
    assert not [page for page in pages if loads.search(page.read_text("utf-8"))]
    assert not [page for page in pages if re.search(r"<th(?: [^>]*)?></th>", page.read_text("utf-8"))]


CONTRAST = """() => {
    const parts = (text) => text.match(/[\\d.]+/g).map(Number);
    const over = ([r, g, b, a = 1], ground) => [r, g, b].map((one, at) => one * a + ground[at] * (1 - a));
    const light = (colour) => colour.map((one) => one / 255)
        .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
        .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
    const groundOf = (one) => {
        const layers = [];
        for (let at = one; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((ground, layer) => over(layer, ground), [255, 255, 255]);
    };
    const solid = (one) => { let all = 1; for (let at = one; at; at = at.parentElement)
        all *= Number(getComputedStyle(at).opacity); return all; };
    return [...document.querySelectorAll('.md-typeset p, .md-typeset li, .md-typeset td, code span, .md-tabs__link')]
        .filter((one) => one.checkVisibility() && one.textContent.trim())
        .map((one) => {
            const ground = groundOf(one), [r, g, b, a = 1] = parts(getComputedStyle(one).color);
            const pair = [light(over([r, g, b, a * solid(one)], ground)), light(ground)].sort((x, y) => y - x);
            return [(pair[0] + 0.05) / (pair[1] + 0.05), one.textContent.trim().slice(0, 40), one.className];
        });
}"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is on the PATH")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_pages_can_be_read_in_both_schemes_and_links_are_more_than_a_colour(site, scheme, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        links = set()
        tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        for page in ("index", "start", "run-file", "methods/fed-hello"):
            tab.goto((site / f"{page}.html").as_uri())
            playwright.expect(tab.locator("h1")).to_have_count(1)
            found = tab.evaluate(CONTRAST)
            assert len(found) > 20
            assert [one for one in found if one[0] < 4.5] == [], page
            lines = "(all) => all.map((one) => getComputedStyle(one).textDecorationLine)"
            links |= {*tab.locator(".md-typeset p a:visible").evaluate_all(lines)}
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert links == {"underline"}
        browser.close()
