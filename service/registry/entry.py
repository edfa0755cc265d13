"""One name at run time: its reference, the versions that can be leased, and who holds them."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from service.engine.port import EngineAdapter
from service.registry.lifecycle import SERVABLE, Event, State, advance, may
from service.registry.refs import Ref
from service.registry.store import SHORT_DIGEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.adapter.spec import Problem
    from service.registry.refs import Failure, Version
    from service.registry.selector import Selector

Standing = Literal["ready", "loading", "draining", "failed"]
"""How a name stands, in the contract's words."""


class Served:
    """One version at run time."""

    def __init__(self, name: str, version: Version, path: Path, state: State = State.STAGED) -> None:
        self.version = version
        self.state = state
        self.problems: tuple[Problem, ...] = ()
        """Why it failed, where it did."""
        self.engine = EngineAdapter(f"{name}@{version.number}", path, version.modules, version.stop_token_ids)
        self.leases = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def label(self) -> str:
        """What an answer says about who gave it."""
        return f"{self.engine.name} sha256:{self.version.digest[:SHORT_DIGEST]}"

    @property
    def servable(self) -> bool:
        """Whether a request may run on it."""
        return self.state in SERVABLE

    def advance(self, event: Event) -> None:
        """Take a step of its life. Raises IllegalTransition."""
        self.state = advance(self.state, event)

    def fail(self, problems: tuple[Problem, ...]) -> None:
        """It can't be served, and this is why."""
        self.advance(Event.FAIL)
        self.problems = problems

    def lease(self) -> None:
        """One more holder."""
        self.leases += 1
        self._idle.clear()

    def release(self) -> None:
        """One holder fewer."""
        self.leases -= 1
        if not self.leases:
            self._idle.set()

    async def idle(self) -> None:
        """Return once nobody holds it."""
        await self._idle.wait()


class Entry:
    """One name at run time. `lock` is held by whoever changes the reference; reading needs none."""

    def __init__(self, ref: Ref) -> None:
        self.ref = ref
        self.lock = asyncio.Lock()
        self.served: dict[int, Served] = {}
        """Version number → version, for all that the reference mentions."""
        self.leaving: set[Served] = set()
        """Versions the reference has forgotten and somebody still holds."""
        self.publishing = 0
        """Publications under way."""
        self.damage: Problem | None = None
        """Set where the reference on disk can't be understood: nothing is served then, and nothing overwritten."""
        self.last_used: float | None = None

    @property
    def name(self) -> str:
        """The public name."""
        return self.ref.name

    @property
    def active(self) -> Served | None:
        """What the name points at."""
        return None if self.ref.active is None else self.served[self.ref.active]

    @property
    def in_flight(self) -> int:
        """Leases on any of its versions."""
        return sum(served.leases for served in (*self.served.values(), *self.leaving))

    @property
    def standing(self) -> Standing | None:
        """How the name stands; None when there is nothing to list."""
        active = self.active
        if active and active.servable:
            return "ready"
        if self.publishing or (active and active.state is not State.FAILED):
            return "loading"
        if active or self.damage or self.ref.listed:
            return "failed"
        return "draining" if self.leaving else None

    @property
    def forgettable(self) -> bool:
        """Whether nothing would be lost without it."""
        return self.ref.blank and not (self.publishing or self.leaving or self.damage)

    def find(self, wanted: Selector) -> Served | None:
        """The version a selector means; of several with the same content the active one, else the newest."""
        if wanted.number is not None:
            return self.served.get(wanted.number)
        if wanted.digest is None:
            return self.active
        matches = [served for served in self.served.values() if served.version.digest.startswith(wanted.digest)]
        if len({served.version.digest for served in matches}) != 1:
            return None
        return self.active if self.active in matches else max(matches, key=lambda served: served.version.number)

    def follow(self, ref: Ref) -> None:
        """Take over a reference that has the same versions and points at the same one."""
        self.ref = ref
        for version in ref.versions:
            self.served[version.number].version = version

    def adopt(self, ref: Ref) -> list[Served]:
        """Follow a reference that is on disk now. Returns the versions that have to drain because of it."""
        before, kept = self.active, {version.number for version in ref.versions}
        gone = [self.served.pop(number) for number in set(self.served) - kept]
        self.leaving.update(gone)
        self.follow(ref)
        if self.active is before:
            return gone
        if self.active:
            self.active.advance(Event.PROMOTE)
        if before and may(before.state, Event.DEMOTE):
            before.advance(Event.DEMOTE)
            return list({*gone, before})
        return gone

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with a name that is `failed`."""
        if self.damage:
            return (self.damage,)
        if self.active:
            return self.active.problems
        return self.ref.last_failure.problems if self.ref.last_failure else ()

    def record(self, where: Callable[[str], str]) -> dict[str, Any]:
        """The contract's record. `where` tells where an engine name resides. Only for a name with a standing."""
        current = self.ref.current
        standing = self.standing
        return {
            "name": self.name,
            "state": standing,
            "active": self.ref.active,
            "base": current.base if current else None,
            "source": current.source if current else None,
            "pinned": self.ref.pinned,
            "in_flight": self.in_flight,
            "last_used": _moment(self.last_used),
            "problems": _dicts(self.problems()) if standing == "failed" else [],
            "warnings": _dicts(current.warnings) if current else [],
            "last_failure": _failure(self.ref.last_failure),
            "versions": [_version(served, where) for _, served in sorted(self.served.items())],
        }


def failed_record(name: str, failure: Failure) -> dict[str, Any]:
    """The record of a directory that has no reference, since it can't even have the name.

    What isn't UTF-8 in the directory's name becomes a replacement character.
    """
    entry = Entry(Ref(os.fsencode(name).decode("utf-8", "replace"), last_failure=failure))
    return entry.record(lambda _: "disk")


def _version(served: Served, where: Callable[[str], str]) -> dict[str, Any]:
    version = served.version
    return {
        "version": version.number,
        "digest": version.digest,
        "rank": version.rank,
        "bytes": version.bytes,
        "created": _moment(version.created),
        "residency": where(served.engine.name),
        "strength": version.strength,
        "warnings": _dicts(version.warnings),
    }


def _failure(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"when": _moment(failure.when), "digest": failure.digest, "problems": _dicts(failure.problems)}


def _dicts(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [problem.as_dict() for problem in problems]


def _moment(seconds: float | None) -> str | None:
    """A time as RFC 3339 has it, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
