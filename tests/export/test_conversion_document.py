"""The tables of docs/conversion.md are what `convert` does today. `UPDATE_DOCS=1 pytest` writes them anew.

Figures that depend on the processor (how many weights round the other way, how far logits are apart) are left out of
the comparison; everything else has to be as it is written.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trained
from bring import Brought, Case, Room, export
from cases import ADAPTERS, BROKEN_ADAPTERS, EXPORTS_ON_DEMO, EXPORTS_ON_MINIATURES, MODELS

from service.export import reference
from service.export.convert import convert
from service.export.refusal import Refused
from service.export.request import Request

if TYPE_CHECKING:
    from service.export.report import Conversion

DOCUMENT = Path(__file__).parents[2] / "docs" / "conversion.md"
HEAD = ["| what was brought | tensors changed | greedy tokens equal | weights different | logits | effect kept |"]
REFUSALS = ["| what was brought | refused as | in words |", "| --- | --- | --- |"]
RULE = "| --- | --- | --- | --- | --- | --- |"
FIGURES = slice(3, 6)
"""Cells of a row that depend on the processor."""


@pytest.mark.parametrize("group", ["adapters", "models"])
def test_miniatures(group: str, room: Room, one_thread: None) -> None:
    cases = {"adapters": ADAPTERS + BROKEN_ADAPTERS, "models": MODELS}[group]
    converted, refused = [], []
    for case in cases:
        row, out = _convert(case.story, case.bring(room), room)
        if out is not None and group == "models":
            _answers_as_peft_does(case, room, out)
        (converted if out else refused).append(row)
    hold(group, [*HEAD, RULE, *converted])
    hold(f"{group}-refused", [*REFUSALS, *refused])


@pytest.mark.timeout(900)
def test_real_exports(room: Room, exports: Path, demo_base: Path, one_thread: None) -> None:
    """All real exports: those of the demo base on it, those of made-up bases on bases of the same sizes."""
    real = replace(room, exports=exports)
    rows = []
    for name in EXPORTS_ON_DEMO:
        row, out = _convert(f"`{name}`", Brought(exports / name, demo_base), room)
        assert out, row
        rows.append(row)
    for name, kind in EXPORTS_ON_MINIATURES.items():
        row, out = _convert(f"`{name}` on a made-up base", export(name, kind)(real), room)
        assert out, row
        rows.append(row)
    hold("exports", [*HEAD, RULE, *rows])


def _convert(story: str, brought: Brought, room: Room) -> tuple[str, Path | None]:
    """A row of the table, and where the result is if there is one. It gives the reference's tokens, or this fails."""
    out = room.new("out")
    request = Request(brought.source, out, str(brought.base) if brought.base else None, **brought.options)
    try:
        conversion = convert(request, lambda *_: None)
    except Refused as error:
        assert not out.exists(), story
        reason = error.reasons[0]
        codes = ", ".join(f"`{code}`" for code in dict.fromkeys(str(reason.code) for reason in error.reasons))
        return f"| {story} | {codes} | {_cell(reason.message)} |", None
    return _row(story, conversion), out


def _answers_as_peft_does(case: Case, room: Room, out: Path) -> None:
    """Every merged model was made by the same merge of PEFT's, which is asked here once more, by itself."""
    asked = reference.prompts(out)
    peft = trained.train(room.base(), target_modules="all-linear").merge_and_unload()
    expected = reference.answer(reference.cast(peft, "float32"), asked)
    got = reference.answer(reference.cast(reference.load(out, "bfloat16"), "float32"), asked)
    assert got.tokens == expected.tokens, case.story


def _row(story: str, conversion: Conversion) -> str:
    assert conversion.verification is not None
    found = conversion.verification.comparison
    assert found.tokens_equal == found.tokens, story
    changed, targets = conversion.verification.changed, conversion.verification.targets
    of = "" if changed is None else f"{changed}" if targets is None else f"{changed} of {targets} targets"
    kept = "" if found.kept is None else f"{found.kept:.1%}"
    different = f"{found.different:,} of {found.elements:,}"
    equal = f"{found.tokens_equal} of {found.tokens}"
    return f"| {story} | {of} | {equal} | {different} | {found.logits:.2g} | {kept} |"


def hold(section: str, table: list[str]) -> None:
    """Compare a table with the committed one, or commit it."""
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {section} -->\n", f"<!-- /{section} -->\n"
    before, _, rest = text.partition(begin)
    committed, found, after = rest.partition(end)
    assert found, f"{DOCUMENT.name} has no place for {section}"
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(before + begin + "\n".join(table) + "\n" + end + after)
    else:
        assert _steady(committed.splitlines()) == _steady(table)


def _steady(table: list[str]) -> list[Any]:
    """The rows without the figures that depend on the processor."""
    rows = [re.split(r"(?<!\\) *\| *", row.strip("| ")) for row in table]
    return [[cell for place, cell in enumerate(row) if place not in range(FIGURES.start, FIGURES.stop)] for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
