"""One name's reference: which versions it has, which one it points at, and what is remembered about it.

A value without I/O. Every change is a method that returns another `Ref`; the store writes the result in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from service.adapter.spec import Problem  # noqa: TC001 (pydantic resolves it when the module is read)
from service.errors import Conflict, VersionNotFound

FORMAT: Final = 1
"""Of a reference file and of the store around it. A newer one is refused, an older one is read."""

MAX_VERSION: Final = 9_999_999
"""`NAME@N` has at most seven digits: eight are a digest."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class ProofStamp:
    """What a proof was made for. It holds only where all of it is the same."""

    base: str
    """The base's fingerprint."""
    dtype: str
    max_rank: int
    rules: int
    """The version of the rules it was judged by."""


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version: its number is never given again, its files never change."""

    number: int
    digest: Hex
    rank: int
    bytes: int
    """Of the weights as received."""
    created: float
    """Seconds since the epoch."""
    modules: int
    proof: ProofStamp
    base: str = ""
    """The base as the adapter names it."""
    source: str = ""
    stop_token_ids: tuple[int, ...] = ()
    strength: float | None = None
    warnings: tuple[Problem, ...] = ()
    allow_base_mismatch: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What a watched directory last held, so that it is published again only when it holds something else."""

    digest: Hex | None
    """None where the content could not be read as an adapter at all."""
    stamp: str
    """Sizes and times of its files: while they are the same, nothing needs to be read."""
    refused: str | None = None
    """The conditions under which it was refused; under others it deserves another trial."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last attempt that did not become a version."""

    when: float
    """Seconds since the epoch."""
    digest: Hex | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Ref:
    """Everything that is kept about one name.

    Invariants: versions stand in ascending order and below `next`; `active` is one of them, and None only when there
    is none; `previous` is one of the others.
    """

    name: str
    next: int = 1
    """The number the next version gets: numbers are never given twice, not even after a removal."""
    versions: tuple[Version, ...] = ()
    active: int | None = None
    previous: int | None = None
    """The version that was active before this one: where a rollback without a number leads."""
    pinned: bool = False
    removed: float | None = None
    """When the name was deleted; it stays as a tombstone, so that nothing brings it back unasked."""
    offers: dict[str, Offer] = field(default_factory=dict)
    """Watched directory → what it last held."""
    last_failure: Failure | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raise ValueError where the invariants don't hold."""
        numbers = [version.number for version in self.versions]
        if self.format > FORMAT:
            raise ValueError(f"format {self.format} is newer than {FORMAT}")
        if numbers != sorted(set(numbers)) or (numbers and not 0 < numbers[0] <= numbers[-1] < self.next):
            raise ValueError("version numbers must ascend from 1 and stay below the next one")
        if (self.active is None) != (not numbers) or (self.active is not None and self.active not in numbers):
            raise ValueError("the active version must be one of the versions")
        if self.previous is not None and (self.previous not in numbers or self.previous == self.active):
            raise ValueError("the previous version must be another one of the versions")
        if self.removed is not None and (numbers or self.pinned):
            raise ValueError("a removed name has no versions and no pin")

    @property
    def blank(self) -> bool:
        """Whether there is nothing to remember: no number was ever given, nothing offered, nothing failed."""
        return self == Ref(self.name)

    @property
    def listed(self) -> bool:
        """Whether users see it: it has versions, or an attempt to give it one failed."""
        return bool(self.versions) or (self.removed is None and self.last_failure is not None)

    def version(self, number: int) -> Version:
        """One version. Raises VersionNotFound."""
        for version in self.versions:
            if version.number == number:
                return version
        raise VersionNotFound(self.name, f"version {number}")

    @property
    def current(self) -> Version | None:
        """The active version."""
        return None if self.active is None else self.version(self.active)

    def burn(self) -> Ref:
        """Give a number away, whatever becomes of it. Raises Conflict when there are no more."""
        if self.next > MAX_VERSION:
            raise Conflict(f"The adapter {self.name!r} has used up its version numbers.")
        return replace(self, next=self.next + 1)

    def publish(self, version: Version, keep: int) -> Ref:
        """Add a version (its number already burnt), point at it, forget the last failure and what is too old."""
        published = replace(
            self,
            versions=(*self.versions, version),
            active=version.number,
            previous=self.active,
            removed=None,
            last_failure=None,
        )
        return published.retain(keep)

    def retain(self, keep: int) -> Ref:
        """Keep the newest `keep` versions, and the active one however old it is."""
        newest = {version.number for version in self.versions[-keep:]}
        kept = tuple(version for version in self.versions if version.number in newest | {self.active})
        numbers = {version.number for version in kept}
        return replace(self, versions=kept, previous=self.previous if self.previous in numbers else None)

    def rollback(self, number: int | None = None) -> Ref:
        """Point at another version; None is the one before. Raises VersionNotFound, or Conflict when there is none."""
        target = self.previous if number is None else self.version(number).number
        if target is None:
            raise Conflict(f"The adapter {self.name!r} has no version before this one. Name the version to go to.")
        if target == self.active:
            return self
        return replace(self, active=target, previous=self.active)

    def without(self, number: int) -> Ref:
        """Forget one version. Raises VersionNotFound, or Conflict for the active one."""
        if self.version(number).number == self.active:
            raise Conflict(f"Version {number} of {self.name!r} is active. Roll back or publish another one first.")
        kept = tuple(version for version in self.versions if version.number != number)
        return replace(self, versions=kept, previous=None if self.previous == number else self.previous)

    def remove(self, when: float) -> Ref:
        """The tombstone: what it was offered, and which numbers it has used, is remembered. Offers count as settled."""
        settled = {source: replace(offer, refused=None) for source, offer in self.offers.items()}
        return Ref(self.name, next=self.next, offers=settled, removed=when)

    def pin(self, pinned: bool) -> Ref:
        """Keep the active version resident, or no longer."""
        return replace(self, pinned=pinned)

    def fail(self, failure: Failure) -> Ref:
        """Remember an attempt that did not become a version. What serves goes on serving."""
        return replace(self, last_failure=failure, removed=None)

    def offered(self, source: str, offer: Offer) -> Ref:
        """Remember what a watched directory held."""
        return replace(self, offers={**self.offers, source: offer})

    def forget(self, source: str) -> Ref:
        """Forget a watched directory, so that its return counts as new."""
        return replace(self, offers={key: offer for key, offer in self.offers.items() if key != source})

    def reproven(self, number: int, proof: ProofStamp) -> Ref:
        """The same version under a proof made anew."""
        renewed = replace(self.version(number), proof=proof)
        return replace(
            self, versions=tuple(renewed if version.number == number else version for version in self.versions)
        )


_JSON: Final[TypeAdapter[Ref]] = TypeAdapter(Ref)


def encode(ref: Ref) -> bytes:
    """The reference file's text, for people too."""
    return _JSON.dump_json(ref, indent=1) + b"\n"


def decode(text: bytes) -> Ref:
    """The value of a reference file. Raises ValueError, in words for the log, when it isn't a whole and sound one."""
    try:
        return _JSON.validate_json(text, strict=False)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
