"""What commands show to people: problems, and adapters as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_STATE_STYLES: Final = {"ready": "green", "loading": "yellow", "draining": "yellow", "failed": "red"}


def show_problems(console: Console, problems: Iterable[Mapping[str, str]], style: str = "red") -> None:
    """Each problem, or in another style each warning: its code and place, what is wrong, what to do about it."""
    for problem in problems:
        head = Text(problem["code"], f"bold {style}")
        if problem["where"]:
            head.append(f"  {problem['where']}", "not bold default")
        console.print(head)
        console.print(Text(f"  {problem['message']}"))
        if problem["remedy"]:
            console.print(Text(f"  → {problem['remedy']}", "dim"))


def show_adapters(console: Console, records: Iterable[Mapping[str, Any]]) -> None:
    """One line an adapter, as of its active version."""
    heads = ("STATE", "ACTIVE", "RANK", "SIZE", "RESIDENCY", "PINNED", "RUNNING", "LAST USED")
    table = Table(Column("NAME", overflow="fold"), *(Column(head, no_wrap=True) for head in heads), box=None)
    table.pad_edge = False
    now = datetime.now(UTC)
    for record in records:
        active = next((known for known in record["versions"] if known["version"] == record["active"]), None)
        table.add_row(
            record["name"],
            _state(record),
            *_facts(active),
            "yes" if record["pinned"] else "",
            str(record["in_flight"]),
            _ago(record["last_used"], now),
        )
    console.print(table)


def show_adapter(console: Console, record: Mapping[str, Any]) -> None:
    """One adapter with its versions and all that is wrong with it or worth a word."""
    console.print(Text.assemble((record["name"], "bold"), "  ", _state(record)))
    facts = {
        "base": record["base"],
        "source": record["source"],
        "running": record["in_flight"],
        "last used": _minute(record["last_used"]) or "never",
        "pinned": "yes" if record["pinned"] else "no",
    }
    for title, fact in facts.items():
        if fact is not None:
            console.print(Text(f"  {title:<10}{fact}"))
    _show_versions(console, record)
    show_problems(console, record["problems"])
    show_problems(console, record["warnings"], "yellow")
    if failure := record["last_failure"]:
        console.print(Text(f"The last attempt to update it failed at {failure['when']}:", "bold"))
        show_problems(console, failure["problems"])


def _show_versions(console: Console, record: Mapping[str, Any]) -> None:
    table = Table("", "VERSION", "RANK", "SIZE", "RESIDENCY", "STRENGTH", "CREATED", "DIGEST", box=None)
    for version in record["versions"]:
        strength = version["strength"]
        table.add_row(
            "*" if version["version"] == record["active"] else "",
            *_facts(version),
            "" if strength is None else f"{strength:.3g}",
            _minute(version["created"]),
            version["digest"][:12],
        )
    if record["versions"]:
        console.print(table)


def _state(record: Mapping[str, Any]) -> Text:
    return Text(record["state"], _STATE_STYLES.get(record["state"], ""))


def _minute(moment: str | None) -> str:
    """RFC 3339 to the minute, in UTC as it came."""
    return moment[:16].replace("T", " ") if moment else ""


def _ago(moment: str | None, now: datetime) -> str:
    """How long ago, in the one unit that says it, as kubectl does."""
    if moment is None:
        return "never"
    seconds = max(int((now - datetime.fromisoformat(moment)).total_seconds()), 0)
    unit, size = next((known for known in _UNITS if seconds >= known[1]), _UNITS[-1])
    return f"{seconds // size}{unit} ago"


def _facts(version: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """Number, rank, size and residency."""
    if version is None:
        return "", "", "", ""
    return f"@{version['version']}", str(version["rank"]), decimal(version["bytes"]), version["residency"]
