"""A client that leaves takes its request along, whatever that request was doing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from service.errors import InvalidRequest

if TYPE_CHECKING:
    from house import House

pytestmark = pytest.mark.anyio


class Visit:
    """One request by hand, so that the client can leave exactly when a test says so."""

    def __init__(self, house: House, **fields: Any) -> None:
        self._house = house
        self._body = json.dumps({"model": "pirate", "prompt": "one two three", **fields}).encode()
        self._asked = False
        self.leave = asyncio.Event()
        self.heard = asyncio.Event()
        """A first chunk has come, and the engine takes no further step."""
        self.status: int | None = None

    async def run(self) -> None:
        """Return when the service is done with the request."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        with anyio.fail_after(10):
            await self._house.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message.get("body"):
            self._house.engine.steps.clear()
            self.heard.set()


async def nothing_is_held(house: House) -> None:
    assert house.catalog.record("pirate")["in_flight"] == 0
    assert not any(house.engine.running.values())
    with anyio.fail_after(2):
        # Returns only when no request has a hold on it.
        await house.generation.residency.retire("pirate@1")


async def is_counted(house: House, code: str) -> None:
    page = (await house.client.get("/metrics")).text
    assert f'loradock_requests_total{{adapter="pirate",code="{code}"}} 1.0' in page
    assert 'running_lora_adapters=""' in page


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_byte_aborts_the_engine(pirate: House, stream):
    pirate.engine.steps.clear()
    visit = Visit(pirate, stream=stream)
    async with anyio.create_task_group() as group:
        group.start_soon(visit.run)
        await pirate.engine.steps.reached.wait()
        assert pirate.catalog.record("pirate")["in_flight"] == 1
        visit.leave.set()
    assert visit.status is None
    assert ("abort", "pirate@1") in pirate.engine.events
    await is_counted(pirate, "499")
    await nothing_is_held(pirate)


async def test_leaving_in_the_middle_of_a_stream_aborts_the_engine(pirate: House):
    visit = Visit(pirate, stream=True)
    async with anyio.create_task_group() as group:
        group.start_soon(visit.run)
        await visit.heard.wait()
        visit.leave.set()
    assert visit.status == 200
    assert ("abort", "pirate@1") in pirate.engine.events
    await is_counted(pirate, "499")
    await nothing_is_held(pirate)


async def test_leaving_while_the_adapter_is_brought_into_the_engine_holds_nothing(pirate: House, monkeypatch):
    await pirate.generation.residency.retire("pirate@1")
    loading, go_on = asyncio.Event(), asyncio.Event()
    load = pirate.engine.load

    async def slow_load(adapter: Any) -> None:
        loading.set()
        await go_on.wait()
        await load(adapter)

    monkeypatch.setattr(pirate.engine, "load", slow_load)
    visit = Visit(pirate)
    async with anyio.create_task_group() as group:
        group.start_soon(visit.run)
        await loading.wait()
        visit.leave.set()
    go_on.set()
    assert visit.status is None
    await is_counted(pirate, "499")
    await nothing_is_held(pirate)


async def test_leaving_is_counted_as_leaving_also_when_the_engine_makes_an_error_of_it(pirate: House, monkeypatch):
    running = asyncio.Event()

    async def run(operation: str, call: Any) -> Any:
        running.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise InvalidRequest("Client disconnected") from None

    monkeypatch.setattr(pirate.engine, "run", run)
    visit = Visit(pirate)
    async with anyio.create_task_group() as group:
        group.start_soon(visit.run)
        await running.wait()
        visit.leave.set()
    assert visit.status is None
    await is_counted(pirate, "499")
    await nothing_is_held(pirate)


async def test_staying_is_not_taken_for_leaving(pirate: House):
    visit = Visit(pirate, stream=False)
    await visit.run()
    assert visit.status == 200
    assert ("abort", "pirate@1") not in pirate.engine.events
    await is_counted(pirate, "200")
