"""What lies below a path: file systems on other machines notify nobody of what others write to them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
REMOTE: Final = ("nfs", "cifs", "smb", "9p", "virtiofs", "ceph", "glusterfs", "lustre", "afs", "fuse")


def is_remote(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether changes below `path` may go unnotified. Blocks. Where that can't be found out, they are notified."""
    try:
        target, lines = path.resolve(), mounts.read_text().splitlines()
    except OSError:
        return False
    # https://docs.kernel.org/filesystems/proc.html: … mount point (fifth) … " - " type source options
    mounted = [(fields[4], rest.split()[0]) for fields, rest in map(_split, lines)]
    # The longest mount point holds the path; of several on one point the last was mounted over the others.
    holding = sorted((mount for mount in mounted if target.is_relative_to(mount[0])), key=lambda mount: len(mount[0]))
    return bool(holding) and holding[-1][1].startswith(REMOTE)


def _split(line: str) -> tuple[list[str], str]:
    mount, _, rest = line.partition(" - ")
    return mount.split(), rest
