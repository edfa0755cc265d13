"""Which directories may be registered by naming them."""

from __future__ import annotations

import pytest

from service.errors import Rejected
from service.registry.doors import Doors


@pytest.fixture
def places(tmp_path):
    for name in ("adapters/pirate/deeper", "adapters/.incoming/cow", "runs/1", "elsewhere/secret", "adapters-2/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "adapters" / "file").touch()
    (tmp_path / "adapters" / "out").symlink_to(tmp_path / "elsewhere" / "secret")
    (tmp_path / "adapters" / "to-runs").symlink_to(tmp_path / "runs" / "1")
    (tmp_path / "adapters" / "alias").symlink_to(tmp_path / "adapters" / "pirate")
    (tmp_path / "adapters" / "loop").symlink_to(tmp_path / "adapters" / "loop")
    return tmp_path


@pytest.fixture
def doors(places):
    return Doors(places / "adapters", [places / "runs"])


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("pirate", "pirate"),
        ("./pirate/../pirate/", "pirate"),
        ("pirate/deeper", "pirate/deeper"),
        (".incoming/cow", ".incoming/cow"),
        ("alias", "pirate"),
    ],
)
def test_what_is_below_the_adapters_directory_is_open(places, doors, path, origin):
    source = doors.open("some", path)
    assert source.directory == (places / "adapters" / path).resolve()
    assert source.origin == origin


@pytest.mark.parametrize("path", ["runs/1", "adapters/pirate"])
def test_an_absolute_path_is_open_below_a_permitted_directory(places, doors, path):
    assert doors.open("some", str(places / path)).directory == places / path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../adapters",
        "../runs/../elsewhere/secret",
        "../adapters-2/x",
        "out",
        "loop",
        "file",
        "missing",
        "pirate\0",
        "\udcff",
        "a" * 5000,
        "/",
        "/etc",
    ],
)
def test_everything_else_gets_one_and_the_same_answer(doors, path):
    with pytest.raises(Rejected) as refused:
        doors.open("some", path)
    with pytest.raises(Rejected) as missing:
        doors.open("some", "nowhere")
    assert refused.value.problems == missing.value.problems
    assert str(refused.value.problems[0].code) == "path_forbidden"


def test_a_link_into_a_permitted_directory_is_open(places, doors):
    assert doors.open("some", "to-runs").directory == places / "runs" / "1"


def test_without_an_adapters_directory_only_absolute_paths_are_open(places):
    doors = Doors(None, [places / "runs"])
    assert doors.open("some", str(places / "runs" / "1")).origin == str(places / "runs" / "1")
    with pytest.raises(Rejected):
        doors.open("some", "runs/1")


def test_nothing_is_open_where_nothing_is_permitted(places):
    with pytest.raises(Rejected):
        Doors(None).open("some", str(places))


@pytest.mark.parametrize(("name", "path", "watched"), [("pirate", "pirate", True), ("cow", "pirate", False)])
def test_a_subdirectory_is_watched_for_its_own_name_only(places, doors, name, path, watched):
    expected = str(places / "adapters" / name) if watched else None
    assert doors.open(name, path).offered_by == expected
