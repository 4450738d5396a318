"""What the site has beyond docs/: the groups of methods, and a page for every file that a page links to.

A link such as ``../src/fedquilt/core/loop.py`` works in the repository as it stands. On the site the file it leads to
is a page below ``repository/``: Markdown as it is, a picture as it is, other text as a block of code, which the search
leaves out. The forge's ``> [!WARNING]`` becomes the theme's box.
"""

from __future__ import annotations

import re
from os.path import relpath
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
ALWAYS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
BOX = re.compile(r"^> \[!(\w+)\]\n((?:> ?.*\n?)+)", re.M)
EMPTY_HEAD = re.compile(r"<th( [^>]*)?></th>")
PICTURES = {".png", ".svg", ".jpg"}
LANGUAGES = {".py": "python", ".toml": "toml", ".patch": "diff", ".sh": "bash"}


def on_config(config: Any) -> Any:
    """Put every method's page into the navigation, in the groups of the page that lists them."""
    index = DOCS / "methods" / "README.md"
    groups: dict[str, list[str]] = {}
    for part in re.split(r"^## ", index.read_text("utf-8"), flags=re.M)[1:]:
        groups[part.partition("\n")[0]] = re.findall(r"^\| .*?\]\(([\w-]+\.md)\)", part, re.M)
    listed = {page for pages in groups.values() for page in pages}
    others = sorted(path.name for path in index.parent.glob("*.md") if path != index and path.name not in listed)
    groups |= {"Others": others} if others else {}
    (entry,) = (entry for entry in config.nav if "Methods" in entry)
    entry["Methods"] += [{name: [f"methods/{page}" for page in pages]} for name, pages in groups.items()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/ that is linked, and for those that these link to."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    waiting += [ROOT / name for name in ALWAYS]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.is_relative_to(DOCS):
            files.append(_file(path, config))
        if path.is_dir():
            waiting += _inside(path)
        elif path.suffix == ".md":
            linked = [_target(path, found[2]) for found in LINK.finditer(path.read_text("utf-8"))]
            waiting += [one for one in linked if one.exists() and not one.is_relative_to(DOCS)]
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    source = _origin(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        if not target.is_relative_to(ROOT) or not target.exists():
            return found[0]  # mkdocs says that it leads nowhere
        return f"{found[1]}{relpath(_uri(target), PurePosixPath(page.file.src_uri).parent)}{found[3]}"

    return BOX.sub(_box, LINK.sub(link, markdown))


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Make the corner of a table that has no name a cell: a header without text tells a screen reader nothing."""
    return EMPTY_HEAD.sub(r"<td\1></td>", html)


def _target(source: Path, link: str) -> Path:
    """The file that a link in a file leads to; a folder's is its README, if it has one."""
    target = (source.parent / link).resolve()
    return target / "README.md" if (target / "README.md").is_file() else target


def _inside(folder: Path) -> list[Path]:
    """The files of a folder that has no README."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _uri(path: Path) -> str:
    """Where a file of the repository lies among the sources of the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    kept = path.suffix in {".md", *PICTURES}
    if path.is_dir():
        return f"repository/{path.relative_to(ROOT).as_posix()}/README.md"
    return f"repository/{path.relative_to(ROOT).as_posix()}{'' if kept else '.md'}"


def _origin(uri: str) -> Path:
    """The file of the repository that a source of the site is."""
    if not uri.startswith("repository/"):
        return DOCS / uri
    path = ROOT / uri.removeprefix("repository/")
    return path.with_suffix("") if path.with_suffix("").is_file() else path


def _file(path: Path, config: Any) -> File:
    if path.suffix in {".md", *PICTURES}:
        return File.generated(config, _uri(path), abs_src_path=str(path))
    name = path.relative_to(ROOT).as_posix()
    head = f"---\ntitle: {name}\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n\n# {name}\n\n"
    if path.is_dir():
        listed = "".join(f"- [{one.name}]({one.name})\n" for one in _inside(path))
        return File.generated(config, _uri(path), content=head + listed)
    text = path.read_text("utf-8")
    return File.generated(
        config, _uri(path), content=f"{head}``````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n``````\n"
    )


def _box(found: re.Match[str]) -> str:
    body = "\n".join("    " + line.removeprefix(">").strip() for line in found[2].splitlines())
    return f"!!! {found[1].lower()}\n\n{body}\n"
