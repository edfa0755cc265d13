"""Uploaded archives."""

from __future__ import annotations

import io
import os
import resource
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from builder import directory
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Rejected, TooLarge
from service.registry.intake import DEEPEST, FREE, MOST_MEMBERS, accept_name, unpack

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": os.urandom(3000)}
LIMIT = 1 << 20


def tar(path, members, mode="w"):
    """A tar of (TarInfo or name, content)."""
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path, members, **how):
    with zipfile.ZipFile(path, "w", **how) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def pack(path, kind, members):
    if kind == "zip":
        return zipped(path, members, compression=zipfile.ZIP_DEFLATED)
    return tar(path, members, {"tar": "w", "tar.gz": "w:gz"}[kind])


def contents(target):
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def refused(tmp_path, archive, error=Rejected):
    """The code of the problem; nothing is left where it would have been unpacked."""
    with pytest.raises(error) as caught:
        unpack(archive, tmp_path / "target", max_bytes=LIMIT)
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "outside"}
    assert len(caught.value.problems) == 1
    return str(caught.value.problems[0].code)


KINDS = pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])


@KINDS
@pytest.mark.parametrize("folder", ["", "./", "pirate/", "./runs/pirate/"])
def test_an_archive_is_unpacked_and_its_single_folder_left_out(tmp_path, kind, folder):
    archive = pack(tmp_path / "archive", kind, [(folder + name, content) for name, content in FILES.items()])
    unpack(archive, tmp_path / "target", max_bytes=LIMIT)
    assert contents(tmp_path / "target") == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "target"}


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_further_attributes_are_understood(tmp_path, style):
    folder = "/".join(["a-long-folder-name" * 3] * 3)
    with tarfile.open(tmp_path / "archive", "w", format=style, pax_headers={"comment": "x"}) as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))
    unpack(tmp_path / "archive", tmp_path / "target", max_bytes=LIMIT)
    assert contents(tmp_path / "target") == FILES


@KINDS
def test_what_the_finder_adds_is_left_out(tmp_path, kind):
    litter = {"__MACOSX/pirate/._adapter_config.json": b"", "pirate/.DS_Store": b"", "._pirate": b""}
    packed = litter | {f"pirate/{name}": content for name, content in FILES.items()}
    unpack(pack(tmp_path / "archive", kind, packed.items()), tmp_path / "target", max_bytes=LIMIT)
    assert contents(tmp_path / "target") == FILES


@KINDS
@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "a/../../outside",
        "/outside",
        "//outside",
        "a\\..\\outside",
        "C:outside",
        "a/..",
        "\x01",
        "a\nb",
        "a" * 256,
        "/".join("a" * (DEEPEST + 1)),
    ],
)
def test_no_name_leads_out(tmp_path, kind, name):
    archive = pack(tmp_path / "archive", kind, [*FILES.items(), (name, b"x")])
    assert refused(tmp_path, archive) == "path_forbidden"
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@KINDS
@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("a", "./a"), ("a", "a/b"), ("a/b", "a")])
def test_no_file_is_written_twice(tmp_path, kind, names):
    archive = pack(tmp_path / "archive", kind, [(name, b"x") for name in names])
    assert refused(tmp_path, archive) == "path_forbidden"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"Z"]
)
def test_a_tar_holds_files_and_folders_only(tmp_path, kind):
    odd = tarfile.TarInfo("odd")
    odd.type, odd.linkname = kind, "/etc/passwd"
    archive = tar(tmp_path / "archive", [*FILES.items(), (odd, b"")])
    assert refused(tmp_path, archive) == "path_forbidden"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_holds_files_and_folders_only(tmp_path, kind):
    odd = zipfile.ZipInfo("odd")
    odd.external_attr = (kind | 0o777) << 16
    assert refused(tmp_path, zipped(tmp_path / "archive", [(odd, b"/etc/passwd")])) == "path_forbidden"


def test_a_link_to_write_through_is_refused_before_it_is_made(tmp_path):
    link = tarfile.TarInfo("folder")
    link.type, link.linkname = tarfile.SYMTYPE, ".."
    archive = tar(tmp_path / "archive", [(link, b""), ("folder/outside", b"x")])
    assert refused(tmp_path, archive) == "path_forbidden"
    assert not (tmp_path / "outside").exists()


def test_a_sparse_file_in_pax_clothes_is_refused(tmp_path):
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as archive:
        sparse.size = 512
        archive.addfile(sparse, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    assert refused(tmp_path, tmp_path / "archive") == "path_forbidden"


def test_an_encrypted_zip_is_refused(tmp_path):
    archive = zipped(tmp_path / "archive", FILES.items())
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    archive.write_bytes(data)
    assert refused(tmp_path, archive) == "path_forbidden"


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_is_deflated_or_stored(tmp_path, method):
    assert refused(tmp_path, zipped(tmp_path / "archive", FILES.items(), compression=method)) == "path_forbidden"


@KINDS
def test_more_than_is_accepted_is_too_large(tmp_path, kind):
    archive = pack(tmp_path / "archive", kind, [("one", os.urandom(LIMIT // 2)), ("two", os.urandom(LIMIT // 2 + 1))])
    assert refused(tmp_path, archive, TooLarge) == "too_large"


@KINDS
def test_too_many_files_are_too_large(tmp_path, kind):
    archive = pack(tmp_path / "archive", kind, [(f"{number}", b"") for number in range(MOST_MEMBERS + 1)])
    assert refused(tmp_path, archive, TooLarge) == "too_large"


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_is_put_out_early(tmp_path, kind):
    size = 64 << 20
    archive = pack(tmp_path / "archive", kind, [("bomb", bytes(size))])
    assert archive.stat().st_size < size / 500
    with pytest.raises(TooLarge):
        unpack(archive, tmp_path / "target", max_bytes=1 << 40)
    assert not (tmp_path / "target").exists()


def test_what_is_not_unpacked_counts_too(tmp_path):
    """Litter costs time, though not a byte of it is written."""
    litter = tarfile.TarInfo(".DS_Store")
    tar(tmp_path / "archive", [(litter, bytes(FREE + LIMIT))], "w:gz")
    assert refused(tmp_path, tmp_path / "archive", TooLarge) == "too_large"


def test_a_member_that_lies_about_its_size_is_broken(tmp_path):
    archive = zipped(tmp_path / "archive", [("file", b"x" * 5000)], compression=zipfile.ZIP_DEFLATED)
    data = archive.read_bytes().replace((5000).to_bytes(4, "little"), (4000).to_bytes(4, "little"))
    archive.write_bytes(data)
    assert refused(tmp_path, archive) == "weights_incomplete"


def with_memory(limit, work):
    """Run `work` where the process may take so many bytes more than it has."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115, PTH123
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit, hard))
    try:
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_a_gigabyte_is_not_read_into_memory(tmp_path, kind):
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 1 << 30
    with (tmp_path / "archive").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 30)
    code = with_memory(256 << 20, lambda: refused(tmp_path, tmp_path / "archive", TooLarge))
    assert code == "too_large"


def test_a_long_chain_of_headers_ends(tmp_path):
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XGLTYPE, 0
    (tmp_path / "archive").write_bytes(header.tobuf(tarfile.GNU_FORMAT) * 100_000)
    assert refused(tmp_path, tmp_path / "archive") in {"too_large", "weights_invalid"}


def test_a_table_of_contents_of_a_gigabyte_is_not_read_into_memory(tmp_path):
    archive = zipped(tmp_path / "archive", FILES.items())
    data = archive.read_bytes()
    with archive.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 30)
        end = bytearray(data[-22:])
        end[12:16] = (1 << 30).to_bytes(4, "little")
        end[16:20] = bytes(4)
        file.write(end)
        file.seek(0)
        file.write(b"PK\x03\x04")
    assert with_memory(256 << 20, lambda: refused(tmp_path, archive, TooLarge)) == "too_large"


@KINDS
def test_an_archive_that_ends_early_is_refused_wherever_it_ends(tmp_path, kind):
    archive = pack(tmp_path / "archive", kind, FILES.items())
    whole = archive.read_bytes()
    ends = range(0, len(whole) if kind != "tar" else sum(512 + -(-len(c) // 512) * 512 for c in FILES.values()), 97)
    for end in ends:
        archive.write_bytes(whole[:end])
        assert refused(tmp_path, archive) in {"weights_incomplete", "path_forbidden"}, end


@given(st.binary(max_size=2000), st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08"]))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_and_never_surprises(noise, magic):
    with directory() as root:
        home = Path(root)
        (home / "archive").write_bytes(magic + noise)
        refused(home, home / "archive")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_spoiled_byte_gives_the_files_or_a_refusal(kind, data):
    with directory() as root:
        home = Path(root)
        archive = pack(home / "archive", kind, FILES.items())
        content = bytearray(archive.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        archive.write_bytes(content)
        try:
            unpack(archive, home / "target", max_bytes=LIMIT)
        except Rejected:
            assert not (home / "target").exists()


def test_an_empty_archive_is_refused(tmp_path):
    for kind in ("tar", "tar.gz", "zip"):
        assert refused(tmp_path, pack(tmp_path / "archive", kind, [])) in {"path_forbidden", "weights_incomplete"}


@pytest.mark.parametrize("name", ["adapter_config.json", ".gitattributes", "tokenizer.model", "Ünïcode.json"])
def test_a_plain_file_name_is_accepted(name):
    assert accept_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "C:a", "a\0b", "a\n", "a" * 256, "a/"])
def test_anything_else_is_no_file_name(name):
    with pytest.raises(Rejected):
        accept_name(name)
