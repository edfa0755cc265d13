"""Tables in docs/ that are made from the code, and compared with it. `UPDATE_DOCS=1 pytest` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def hold(document: str, section: str, heads: list[str], rows: list[list[str]]) -> None:
    """Compare a table with the one committed between `<!-- section -->` and `<!-- /section -->`, or write it."""
    path = DOCS / document
    text = path.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- /{section} -->\n"
    before, found, rest = text.partition(begin)
    committed, ended, after = rest.partition(end)
    assert found, f"{document} has no section {section}"
    assert ended, f"{document} doesn't end its section {section}"
    lines = [heads, ["---"] * len(heads), *rows]
    written = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(before + begin + written + end + after)
    else:
        assert committed == written, f"{document} is out of date: UPDATE_DOCS=1 pytest writes it anew"
