"""`/adapters`: registering by path and by upload, and everything that can be wrong with it."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from house import MAX_UPLOAD
from tiny_model import write_adapter

from service.api.schemas import AdapterList, AdapterRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import httpx2
    from house import House

pytestmark = pytest.mark.anyio

PROBLEM_JSON = "application/problem+json"


def parts(directory: Path, *names: str) -> list[tuple[str, tuple[str, bytes]]]:
    files = [directory / name for name in names] or sorted(directory.iterdir())
    return [("files", (path.name, path.read_bytes())) for path in files]


def tar_of(directory: Path, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for path in sorted(directory.iterdir()):
            archive.add(path, path.name)
    return packed.getvalue()


def zip_of(directory: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(directory.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


def refused(answer: httpx2.Response, status: int) -> list[str]:
    """The codes of the problems, after a look at the form."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, PROBLEM_JSON)
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= set(body)
    for problem in body.get("problems", []):
        assert set(problem) == {"code", "message", "where", "remedy"}
    return [problem["code"] for problem in body.get("problems", [])]


def nothing_is_left(house: House) -> None:
    assert not list((house.state / "staging").iterdir())


async def test_a_directory_is_registered_by_its_path(house: House):
    write_adapter(house.adapters / "pirate")
    answer = await house.client.post("/adapters", json={"name": "pirate", "path": "pirate"})
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/adapters/pirate"
    record = AdapterRecord.model_validate(answer.json())
    assert (record.name, record.state, record.active) == ("pirate", "ready", 1)
    assert (await house.client.get(answer.headers["Location"])).json()["active"] == 1


async def test_the_same_content_again_is_200_and_no_new_version(pirate: House):
    answer = await pirate.client.post("/adapters", json={"name": "pirate", "path": "pirate"})
    assert answer.status_code == 200
    assert answer.json()["active"] == 1


async def test_another_content_is_the_next_version(pirate: House, tmp_path):
    source = write_adapter(tmp_path / "new", seed=2)
    answer = await pirate.client.post("/adapters", data={"name": "pirate"}, files=parts(source))
    assert answer.status_code == 201
    assert answer.json()["active"] == 2


@pytest.mark.parametrize("pack", [tar_of, lambda path: tar_of(path, "w"), zip_of], ids=["tar.gz", "tar", "zip"])
async def test_an_archive_is_registered(house: House, tmp_path, pack):
    archive = pack(write_adapter(tmp_path / "upload"))
    answer = await house.client.post("/adapters", data={"name": "poet"}, files={"archive": ("whatever.bin", archive)})
    assert answer.status_code == 201, answer.text
    AdapterRecord.model_validate(answer.json())
    nothing_is_left(house)


async def test_files_are_registered_and_the_name_may_come_last(house: House, tmp_path):
    source = write_adapter(tmp_path / "upload")
    form = [*parts(source), ("name", (None, b"poet"))]
    answer = await house.client.post("/adapters", files=form)
    assert answer.status_code == 201, answer.text
    assert answer.json()["source"] == "upload"
    nothing_is_left(house)


async def test_an_unsound_adapter_is_422_with_every_problem_and_nothing_stays(house: House, tmp_path):
    source = write_adapter(tmp_path / "upload", use_dora=True, r=8)
    answer = await house.client.post("/adapters", data={"name": "poet"}, files=parts(source))
    codes = refused(answer, 422)
    assert "unsupported_feature" in codes
    assert len(codes) > 1
    nothing_is_left(house)
    assert ("load", "poet@1") not in house.engine.events


async def test_another_base_is_refused_unless_it_is_allowed(house: House, tmp_path):
    source = write_adapter(tmp_path / "upload", base_model_name_or_path="example/another-base")
    form = {"data": {"name": "poet"}, "files": parts(source)}
    assert refused(await house.client.post("/adapters", **form), 422) == ["base_mismatch"]
    form["data"]["allow_base_mismatch"] = "true"
    assert (await house.client.post("/adapters", **form)).status_code == 201


@pytest.mark.parametrize("path", ["../outside", "/etc", "", "nowhere", "pirate/../.."])
async def test_a_path_that_leaves_the_adapters_directory_is_forbidden(house: House, path):
    answer = await house.client.post("/adapters", json={"name": "poet", "path": path})
    assert refused(answer, 422) == ["path_forbidden"]
    assert str(house.adapters) not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"name": "poet"},
        {"path": "poet"},
        {"name": "poet", "path": "poet", "alias": "bard"},
        {"name": 3, "path": "poet"},
        [],
    ],
)
async def test_a_body_with_missing_wrong_or_unknown_fields_is_refused(house: House, body):
    assert set(refused(await house.client.post("/adapters", json=body), 422)) == {"invalid_request"}


async def test_a_body_of_another_kind_is_415(house: House):
    answer = await house.client.post("/adapters", content=b"name=poet", headers={"Content-Type": "text/plain"})
    refused(answer, 415)


def form(*fields: tuple[str, Any]) -> dict[str, Any]:
    return {"files": list(fields)}


CONFIG = ("files", ("adapter_config.json", b"{}"))
NAME = ("name", (None, b"poet"))


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ((NAME,), "files"),
        ((CONFIG,), "name"),
        ((NAME, CONFIG, ("archive", ("a.tar", b"x"))), "files"),
        ((NAME, CONFIG, CONFIG), "files"),
        ((NAME, NAME, CONFIG), "name"),
        ((NAME, CONFIG, ("version", (None, b"3"))), "version"),
        ((NAME, CONFIG, ("more", ("b", b"x"))), "more"),
        ((("name", ("name.txt", b"poet")), CONFIG), "name"),
        ((("name", (None, b"x" * 5000)), CONFIG), "name"),
        ((NAME, ("archive", ("a.tar", b"x")), ("archive", ("b.tar", b"x"))), "archive"),
        ((NAME, *(("files", (f"tokenizer{i}.json", b"x")) for i in range(101))), "files"),
    ],
)
async def test_a_form_with_missing_wrong_or_unknown_parts_is_refused(house: House, fields, where):
    answer = await house.client.post("/adapters", files=list(fields))
    assert refused(answer, 422) == ["invalid_request"] or answer.json()["problems"][0]["code"] == "path_forbidden"
    assert answer.json()["problems"][0]["where"] == where
    nothing_is_left(house)


@pytest.mark.parametrize("filename", ["../adapter_config.json", "/etc/passwd", "..", "a/../../b", ".hidden", "a\x00b"])
async def test_a_file_name_that_leads_elsewhere_writes_nothing(house: House, filename, tmp_path):
    answer = await house.client.post("/adapters", files=[NAME, ("files", (filename, b"{}"))])
    refused(answer, 422)
    nothing_is_left(house)


BOUNDARY = b"--b\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        BOUNDARY + b"Content-Disposition: form-data; name=files; filename=adapter_config.json\r\n\r\n{",
        BOUNDARY + b"Content-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        BOUNDARY + b"x" * 10_000 + b": y\r\n\r\n\r\n--b--\r\n",
    ],
    ids=["empty", "no form", "cut off", "no name", "a long header"],
)
async def test_a_broken_form_is_refused_and_leaves_nothing(house: House, body):
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(await house.client.post("/adapters", content=body, headers=headers), 422)
    nothing_is_left(house)


async def test_a_form_without_a_boundary_is_refused(house: House):
    answer = await house.client.post("/adapters", content=b"x", headers={"Content-Type": "multipart/form-data"})
    refused(answer, 422)


@pytest.mark.parametrize("declared", [True, False])
async def test_an_upload_beyond_the_limit_is_413_and_leaves_nothing(house: House, declared):
    async def chunks() -> Iterable[bytes]:
        yield BOUNDARY + b'Content-Disposition: form-data; name="files"; filename="adapter_model.safetensors"\r\n\r\n'
        for _ in range(MAX_UPLOAD // 65536 + 1):
            yield b"x" * 65536

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    content = b"x" * (MAX_UPLOAD + 1) if declared else chunks()
    answer = await house.client.post("/adapters", content=content, headers=headers)
    assert refused(answer, 413) == ["too_large"]
    nothing_is_left(house)


async def test_a_client_that_leaves_in_mid_upload_leaves_nothing(house: House):
    sent = []

    async def receive() -> dict[str, Any]:
        sent.append(1)
        if len(sent) > 1:
            return {"type": "http.disconnect"}
        head = b'Content-Disposition: form-data; name="files"; filename="adapter_model.safetensors"\r\n\r\n'
        return {"type": "http.request", "body": BOUNDARY + head + b"x" * 9999, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/adapters",
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
    }
    await house.app(scope, receive, send)
    nothing_is_left(house)


async def test_a_name_that_is_the_bases_or_none_at_all_is_refused(house: House):
    write_adapter(house.adapters / "pirate")
    taken = await house.client.post("/adapters", json={"name": "tiny-base", "path": "pirate"})
    assert refused(taken, 409) == ["name_taken"]
    invalid = await house.client.post("/adapters", json={"name": "no name", "path": "pirate"})
    assert refused(invalid, 422) == ["name_invalid"]


async def test_every_adapter_is_listed_in_the_contracts_form(pirate: House):
    listed = AdapterList.model_validate((await pirate.client.get("/adapters")).json())
    assert [record.name for record in listed.adapters] == ["pirate"]
    assert listed.adapters[0].versions[0].residency == "gpu"


async def test_an_unknown_adapter_is_404_everywhere(house: House):
    for method, path in (
        ("GET", "/adapters/nobody"),
        ("POST", "/adapters/nobody/rollback"),
        ("PUT", "/adapters/nobody/pin"),
        ("DELETE", "/adapters/nobody/pin"),
        ("DELETE", "/adapters/nobody"),
        ("DELETE", "/adapters/nobody/versions/1"),
    ):
        refused(await house.client.request(method, path), 404)


async def test_rolling_back_goes_to_the_version_before_or_to_the_one_that_is_named(pirate: House):
    for seed in (2, 3):
        write_adapter(pirate.adapters / "pirate", seed=seed)
        await pirate.client.post("/adapters", json={"name": "pirate", "path": "pirate"})
    assert (await pirate.client.post("/adapters/pirate/rollback")).json()["active"] == 2
    assert (await pirate.client.post("/adapters/pirate/rollback", json={"version": 1})).json()["active"] == 1
    assert (await pirate.client.post("/adapters/pirate/rollback", json={})).json()["active"] == 2
    refused(await pirate.client.post("/adapters/pirate/rollback", json={"version": 9}), 404)
    assert refused(await pirate.client.post("/adapters/pirate/rollback", json={"to": 1}), 422) == ["invalid_request"]
    assert refused(await pirate.client.post("/adapters/pirate/rollback", json={"version": 0}), 422) == [
        "invalid_request"
    ]


async def test_rolling_back_what_has_no_version_before_is_a_conflict(pirate: House):
    refused(await pirate.client.post("/adapters/pirate/rollback"), 409)


async def test_pins_come_and_go_and_end_where_swapping_would(house: House):
    room = house.engine.limits.max_cpu_loras - 2
    for seed in range(room + 1):
        write_adapter(house.adapters / f"a{seed}", seed=seed)
        await house.client.post("/adapters", json={"name": f"a{seed}", "path": f"a{seed}"})
    for seed in range(room):
        assert (await house.client.put(f"/adapters/a{seed}/pin")).json()["pinned"] is True
    assert refused(await house.client.put(f"/adapters/a{room}/pin"), 409) == ["no_capacity"]
    assert (await house.client.delete("/adapters/a0/pin")).json()["pinned"] is False
    assert (await house.client.put(f"/adapters/a{room}/pin")).status_code == 200


async def test_a_removed_adapter_is_gone_from_everywhere(pirate: House):
    await pirate.client.post("/v1/completions", json={"model": "pirate", "prompt": "ahoy"})
    assert 'adapter="pirate"' in (await pirate.client.get("/metrics")).text
    answer = await pirate.client.delete("/adapters/pirate")
    assert (answer.status_code, answer.content) == (204, b"")
    refused(await pirate.client.get("/adapters/pirate"), 404)
    assert "pirate" not in (await pirate.client.get("/v1/models")).text
    assert "pirate" not in (await pirate.client.get("/metrics")).text
    assert (await pirate.client.post("/v1/completions", json={"model": "pirate", "prompt": "x"})).status_code == 404
    assert pirate.engine.loaded == {}


async def test_a_version_that_is_not_active_can_be_removed(pirate: House):
    write_adapter(pirate.adapters / "pirate", seed=2)
    await pirate.client.post("/adapters", json={"name": "pirate", "path": "pirate"})
    refused(await pirate.client.delete("/adapters/pirate/versions/2"), 409)
    assert (await pirate.client.delete("/adapters/pirate/versions/1")).status_code == 204
    assert [known["version"] for known in (await pirate.client.get("/adapters/pirate")).json()["versions"]] == [2]
    refused(await pirate.client.delete("/adapters/pirate/versions/1"), 404)
    assert refused(await pirate.client.delete("/adapters/pirate/versions/one"), 422) == ["invalid_request"]


async def test_a_dead_engine_does_not_keep_records_from_being_read(pirate: House):
    await pirate.engine.stop()
    assert json.loads((await pirate.client.get("/adapters")).content)["adapters"][0]["name"] == "pirate"
