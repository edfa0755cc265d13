"""The registry on disk."""

from __future__ import annotations

import errno
import json
import os
import string
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.adapter.spec import NAME
from service.errors import ConfigurationError, StoreUnavailable
from service.registry.refs import FORMAT, ProofStamp, Ref, Version, encode
from service.registry.store import Store, _file, _name

DIGEST = "ab" * 32
NAMES = st.from_regex(NAME, fullmatch=True)


def ref_of(name: str) -> Ref:
    proof = ProofStamp("base", "bfloat16", 16, 1)
    return Ref(name).burn().publish(Version(1, DIGEST, 4, 100, 1.5, 2, proof), 5)


def put(store: Store, name: str, number: int = 1) -> None:
    """A version with one file in it, and a reference to it."""
    home = store.scratch()
    (home / "weights").write_bytes(b"x")
    store.commit(home, name, number, DIGEST)


def tree(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def as_nobody(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user whom permissions bind, whoever runs the tests."""
    drop = "import os; os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
    command = [sys.executable, "-c", f"import service.registry.store\n{drop}{script}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@given(NAMES, NAMES)
@example("Foo", "foo")
@example("a.", "a")
def test_two_names_never_share_a_file_even_where_case_does_not_count(one, other):
    assert (_file(one).casefold() == _file(other).casefold()) == (one == other)


@given(NAMES)
def test_a_file_name_tells_its_name(name):
    assert _name(_file(name)) == name
    assert not _file(name).endswith(".")
    assert set(_file(name)) <= set(string.ascii_lowercase + string.digits + "._-~")
    assert len(_file(name)) + len(".json") <= 255


@given(st.text(alphabet="aA~._-1", max_size=6))
def test_what_is_no_file_name_of_ours_tells_no_name(text):
    assert _name(text) is None or _file(_name(text)) == text


def test_what_was_written_is_read_again(tmp_path):
    with Store.open(tmp_path / "state") as store:
        put(store, "Pirate")
        store.write(ref_of("Pirate"))
    found = Store(tmp_path / "state").read()
    assert found.refs == {"Pirate": ref_of("Pirate")}
    assert not found.damaged


def test_a_reader_sees_the_old_reference_or_the_new_one_while_another_writes(tmp_path):
    with Store.open(tmp_path) as store:
        store.write(ref_of("pirate"))
        reader = Store(tmp_path)
        store.write(ref_of("pirate").pin(True))
        assert reader.read().refs["pirate"].pinned


def test_a_reader_never_writes(tmp_path):
    with Store.open(tmp_path) as store:
        store.write(ref_of("pirate"))
    with pytest.raises(StoreUnavailable):
        Store(tmp_path).write(ref_of("pirate"))


def test_a_damaged_reference_hides_no_other(tmp_path):
    with Store.open(tmp_path) as store:
        store.write(ref_of("sound"))
        (tmp_path / "refs" / "torn.json").write_bytes(encode(ref_of("torn"))[:-20])
        (tmp_path / "refs" / "liar.json").write_bytes(encode(ref_of("somebody")))
        (tmp_path / "refs" / "NOTES").write_text("what is this")
        found = store.read()
    assert set(found.refs) == {"sound"}
    assert set(found.damaged) == {"torn", "liar"}


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    script = "import sys, pathlib; service.registry.store.Store.open(pathlib.Path(sys.argv[1]))"
    with Store.open(tmp_path):
        second = subprocess.run(
            [sys.executable, "-c", f"import service.registry.store\n{script}", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert second.returncode == 1
    assert f"process {os.getpid()} on" in second.stderr
    assert "--state-dir" in second.stderr


def test_the_lock_ends_with_its_holder_even_if_a_child_lives_on(tmp_path):
    script = (
        "import os, signal, sys, pathlib\n"
        "service.registry.store.Store.open(pathlib.Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n"
        "    os.close(1); signal.pause()\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    holder = subprocess.run(
        [sys.executable, "-c", f"import service.registry.store\n{script}", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    try:
        Store.open(tmp_path).close()
    finally:
        os.killpg(int(holder.stdout), 9)


def test_a_store_of_a_newer_release_is_refused(tmp_path):
    Store.open(tmp_path).close()
    (tmp_path / "store.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ConfigurationError, match="newer loradock"):
        Store.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "one"}', "{}"])
def test_a_directory_that_cannot_be_told_is_refused(tmp_path, content):
    Store.open(tmp_path).close()
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(ConfigurationError):
        Store.open(tmp_path)


def test_somebody_elses_directory_is_left_alone(tmp_path):
    (tmp_path / "adapters").mkdir()
    with pytest.raises(ConfigurationError, match="not a state directory"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["adapters"]


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    with Store.open(tmp_path) as store:
        for name in ("kept", "damaged", "unknown"):
            put(store, name)
        put(store, "kept", number=2)
        store.write(ref_of("kept"))
        store.scratch()
        swept = store.sweep(lambda name: {"kept": ref_of("kept"), "damaged": None}.get(name, Ref(name)))
        store.empty_trash()
    assert swept == 3
    short = DIGEST[:12]
    assert [path for path in tree(tmp_path) if path.startswith(("adapters", "staging", "trash"))] == [
        f"adapters/damaged/1-{short}/weights",
        f"adapters/kept/1-{short}/weights",
    ]


def test_a_leftover_in_the_place_of_a_new_version_gives_way(tmp_path):
    with Store.open(tmp_path) as store:
        put(store, "pirate")
        (store.path("pirate", 1, DIGEST) / "old").touch()
        put(store, "pirate")
        assert tree(store.path("pirate", 1, DIGEST)) == ["weights"]


def test_what_the_disk_has_lost_is_known(tmp_path):
    with Store.open(tmp_path) as store:
        put(store, "there")
        refs = {"there": ref_of("there"), "gone": ref_of("gone")}
        assert store.missing(refs) == {"gone": {1}}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_said_in_public_words_and_leaves_the_old_reference(tmp_path, code):
    refusing = False

    def step(_: str) -> None:
        if refusing:
            raise OSError(code, os.strerror(code), str(tmp_path))

    with Store.open(tmp_path, step) as store:
        store.write(ref_of("pirate"))
        refusing = True
        for attempt in (lambda: store.write(ref_of("pirate").pin(True)), store.scratch):
            with pytest.raises(StoreUnavailable) as refused:
                attempt()
            assert str(tmp_path) not in refused.value.message
        refusing = False
        assert not store.read().refs["pirate"].pinned
        assert not list((tmp_path / "staging").iterdir())


def test_a_disk_that_really_is_full_leaves_the_old_reference(tmp_path):
    Store.open(tmp_path).close()
    script = (
        "import pathlib, resource, sys\n"
        "from service.registry.refs import Ref, Offer\n"
        "store = service.registry.store.Store.open(pathlib.Path(sys.argv[1]))\n"
        "store.write(Ref('pirate', next=7))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "big = Ref('pirate', next=8).offered('x' * 10000, Offer(None, 's'))\n"
        "try:\n    store.write(big)\n"
        "except service.errors.StoreUnavailable as error:\n    print(error.message)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", f"import service.registry.store, service.errors\n{script}", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert child.stdout == "The store is full: nothing was changed. Free some space and try again.\n"
    assert Store(tmp_path).read().refs == {"pirate": Ref("pirate", next=7)}
    assert not list((tmp_path / "staging").iterdir())


def test_a_store_that_cannot_be_written_is_opened_for_reading(tmp_path):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    state = tmp_path / "state"
    with Store.open(state) as store:
        store.write(ref_of("pirate"))
    for path in (state, *state.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    script = (
        "import sys, pathlib\n"
        "store = service.registry.store.Store.open(pathlib.Path(sys.argv[1]))\n"
        "print(store.writable, *store.read().refs)\n"
    )
    child = as_nobody(script, str(state))
    assert child.stdout.splitlines()[-1] == "False pirate", child.stderr


def test_a_directory_that_can_hold_no_store_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="can't be used"):
        Store.open(tmp_path / "file" / "state")
