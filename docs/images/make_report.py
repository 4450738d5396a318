"""Make the report page of the comparison in ``docs/start.md``, and keep what a browser shows of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from make_start import compared
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("report.png")

if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else PICTURE).absolute()
    with compared() as comparison, sync_playwright() as browsers:
        page = comparison.page("report.html")
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
        shown.goto(page.absolute().as_uri())
        shown.wait_for_timeout(2000)
        shown.get_by_text("Over rounds and bytes").first.click()
        shown.wait_for_timeout(1000)
        shown.screenshot(path=path)
        browser.close()
