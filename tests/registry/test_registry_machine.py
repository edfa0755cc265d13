"""Anything anybody may do to a registry, in any order, beside the plainest account of what should come of it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from builder import Builder, directory, engine_with, make_base
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.errors import LoradockError

if TYPE_CHECKING:
    from service.registry.lease import Lease

KEEP = 3
NAMES = st.sampled_from(["pirate", "Pirate", "cow"])
SEEDS = st.integers(1, 3)


@dataclass
class Account:
    """What one name should be."""

    versions: dict[int, int] = field(default_factory=dict)
    """Number → seed."""
    active: int | None = None
    before: int | None = None
    next: int = 1
    pinned: bool = False


class Registry(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.directory = directory()
        root = Path(self.directory.name)
        self.builder = Builder(root, make_base(root / "base"))
        self.runner = asyncio.Runner()
        self.accounts: dict[str, Account] = {}
        self.leases: list[tuple[Lease, str, int]] = []
        self.removals: list[asyncio.Task[None]] = []
        self.weights: dict[int, str] = {}
        self.open()

    def open(self) -> None:
        async def enter() -> None:
            self.stack = AsyncExitStack()
            engine = engine_with(max_loras=2, max_cpu_loras=3)
            self.house = await self.stack.enter_async_context(self.builder.open(engine=engine, keep_versions=KEEP))

        self.runner.run(enter())

    def close(self) -> None:
        for lease, _, _ in self.leases:
            lease.release()
        self.leases.clear()

        async def leave() -> None:
            await asyncio.gather(*self.removals)
            self.removals.clear()
            await self.stack.aclose()

        self.runner.run(leave())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.close()
            self.runner.close()
            self.directory.cleanup()

    def account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account())

    def refused(self, work) -> bool:
        try:
            self.runner.run(work)
        except LoradockError:
            return True
        return False

    @rule(name=NAMES, seed=SEEDS)
    def publish(self, name: str, seed: int) -> None:
        account = self.account(name)
        publication = self.runner.run(self.house.catalog.publish(name, self.builder.adapter(seed)))
        unchanged = account.active is not None and account.versions[account.active] == seed
        assert publication.created != unchanged
        if not unchanged:
            number, account.next = account.next, account.next + 1
            account.before, account.active = account.active, number
            account.versions = dict(sorted((account.versions | {number: seed}).items())[-KEEP:])
            path = self.house.store.path(name, number, publication.record["versions"][-1]["digest"])
            content = hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()
            assert self.weights.setdefault(seed, content) == content

    @rule(name=NAMES, seed=SEEDS)
    def publish_what_the_engine_refuses(self, name: str, seed: int) -> None:
        account = self.account(name)
        if account.active is not None and account.versions[account.active] == seed:
            return
        self.house.engine.refused.add(f"{name}@{account.next}")
        assert self.refused(self.house.catalog.publish(name, self.builder.adapter(seed)))
        account.next += 1

    @rule(name=NAMES)
    def rollback(self, name: str) -> None:
        account = self.account(name)
        possible = account.before in account.versions
        assert self.refused(self.house.catalog.rollback(name)) != possible
        if possible:
            account.before, account.active = account.active, account.before

    @rule(name=NAMES, number=st.integers(1, 6))
    def remove_version(self, name: str, number: int) -> None:
        account = self.account(name)
        if any(lease[1:] == (name, number) for lease in self.leases):
            return
        possible = number in account.versions and number != account.active
        assert self.refused(self.house.catalog.remove_version(name, number)) != possible
        if possible:
            del account.versions[number]

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        """Begun, and left to end when the leases do."""
        account = self.account(name)
        if account.active is None:
            return

        async def begin() -> None:
            self.removals.append(asyncio.create_task(self.house.catalog.remove(name)))
            while self.house.catalog._entries[name].active:
                await asyncio.sleep(0.001)

        self.runner.run(begin())
        account.versions, account.active, account.before, account.pinned = {}, None, None, False

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        account = self.account(name)
        others = sum(other.pinned for other_name, other in self.accounts.items() if other_name != name)
        possible = account.active is not None and (account.pinned or others < 1)
        assert self.refused(self.house.catalog.pin(name)) != possible
        account.pinned |= possible

    @rule(name=NAMES)
    def unpin(self, name: str) -> None:
        account = self.account(name)
        if account.active is not None:
            self.runner.run(self.house.catalog.unpin(name))
            account.pinned = False

    @rule(name=NAMES)
    def lease(self, name: str) -> None:
        account = self.account(name)
        if account.active is not None:
            self.leases.append((self.house.catalog.lease(name), name, account.versions[account.active]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def use_and_release(self, data: st.DataObject) -> None:
        lease, _, seed = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))

        async def use() -> None:
            await self.house.residency.hold(lease.adapter)
            content = (lease.adapter.path / "adapter_model.safetensors").read_bytes()
            assert hashlib.sha256(content).hexdigest() == self.weights[seed]
            self.house.residency.release(lease.adapter)

        self.runner.run(use())
        lease.release()

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    @invariant()
    def everything_is_as_accounted(self) -> None:
        if not hasattr(self, "house"):
            return
        for name, account in self.accounts.items():
            entry = self.house.catalog._entries.get(name)
            found = {} if entry is None else {v.number: v for v in entry.ref.versions}
            assert list(found) == list(account.versions)
            assert (entry.ref.active if entry else None) == account.active
            if account.active is None:
                assert self.refused(_lease(self.house.catalog, name))
            else:
                record = self.house.catalog.record(name)
                assert (record["state"], record["pinned"]) == ("ready", account.pinned)
            for number in account.versions:
                self.house.catalog.lease(f"{name}@{number}").release()


async def _lease(catalog, name: str) -> None:
    catalog.lease(name)


Registry.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRegistry = Registry.TestCase
