"""A result is there whole or not at all, and never in its own source."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from service.export.refusal import Refused
from service.export.room import LOCK, check_place, make_room, put_in_place


def test_a_finished_result_takes_its_name_and_can_be_read_by_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with make_room(out) as made:
        (made / "model.safetensors").write_bytes(b"weights")
        (made / "model.safetensors").chmod(0o600)
        assert not out.exists()
        put_in_place(made, out)
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert out.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, end: type[BaseException]) -> None:
    def interrupted() -> None:
        with make_room(tmp_path / "out") as made:
            (made / "half").write_bytes(b"x")
            raise end

    with pytest.raises(end):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".out.converting-killed"
    (left / "made").mkdir(parents=True)
    (left / LOCK).touch()
    with make_room(tmp_path / "out"):
        assert not left.exists()


def test_a_run_that_is_still_at_work_is_left_alone(tmp_path: Path) -> None:
    with make_room(tmp_path / "out") as first, make_room(tmp_path / "out") as second:
        assert first != second
        assert first.is_dir()
        with (first.parent / LOCK).open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_place_that_was_taken_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with make_room(out) as made:
        out.mkdir()
        (out / "somebody's").touch()
        with pytest.raises(Refused):
            put_in_place(made, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("source", "out"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "full"), ("a", "link")])
def test_places_that_are_refused(tmp_path: Path, source: str, out: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused):
        check_place(tmp_path / source, tmp_path / out)


def test_an_empty_directory_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    check_place(tmp_path / "source", tmp_path / "out")
    check_place(tmp_path / "source", Path("relative"))
