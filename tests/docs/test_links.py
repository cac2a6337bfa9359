"""What README and docs name is there: pages, headings, pictures, files and symbols of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"),
                 ROOT / "clients/python/README.md", ROOT / "model/weights/MODEL_CARD.md")
    if "examples" not in path.parts
]  # fmt: skip
FOLDERS = ("fada", "server", "model", "engines", "media", "training", "bench", "tests", "docker",
           "clients", "docs")  # fmt: skip
_SUFFIXES = "py|md|js|json|sh|yml|toml|lua|jpg|webp|wav|safetensors"


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_symbols_are_there(page: Path) -> None:
    """Of `model/types.py` the file, of `model/types.py: Guidance` the symbol as well."""
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        found = re.fullmatch(
            rf"((?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:{_SUFFIXES}))(?:: (.+))?", span
        )
        if found is None:
            continue
        path, symbols = ROOT / found[1], found[2]
        assert path.is_file(), span
        for symbol in symbols.split(", ") if symbols else ():
            last = symbol.split(".")[-1]
            defined = rf"^\s*(?:(?:async def|def|class) {last}\b|{last}\b.*[:=])"
            assert re.search(defined, path.read_text(), re.MULTILINE), span
