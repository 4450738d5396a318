"""The HTML document around a page: its policy, style and scripts, all inside the one file.

No other module imports vl_convert, which brings Vega, Vega-Lite and Vega-Embed as one script.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from importlib.resources import files

_WEB = files("fedquilt.report") / "web"


def document(title: str, body: str, data: str) -> str:
    """Return a whole HTML file around ``body``, which holds no text that is not escaped.

    The browser runs only the scripts and uses only the style that are named by their hashes in the policy, and reaches
    no network. Vega interprets its expressions, so no script may make code of text.

    Parameters
    ----------
    title
        The title, not yet escaped.
    body
        The content of the body.
    data
        The charts, as ``html.charts_json`` writes them.
    """
    style, scripts = _file("page.css"), (_bundle(), _file("page.js"))
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": allowed,
        "style-src": f"'sha256-{_digest(style)}'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{kind} {value}" for kind, value in rules.items())
    run = "\n".join(f"<script>{script}</script>" for script in scripts)
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=False)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="page-data">{data}</script>\n{run}\n</body>\n</html>\n'
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a record may hold half of a surrogate pair


@cache
def _file(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _bundle() -> str:
    """Vega-Embed with all that it needs; making it takes a second."""
    from vl_convert import javascript_bundle

    script = str(javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("the bundle of Vega cannot stand in a page: it would end its own script")
    return script


@cache
def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
