"""One process writes a store; this is how it says so."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

BUSY: Final = frozenset({errno.EACCES, errno.EAGAIN})
LONGEST: Final = 200


class WriterLock:
    """Held from its making until `release`, or until the process ends in whatever way.

    A record lock, not `flock`: it belongs to this process alone. Engine processes forked from it don't inherit it,
    so a killed service leaves nothing behind that keeps the next one out.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError naming the holder, OSError where the file can't be made or locked."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, LONGEST, 0).decode(errors="replace").strip()
            os.close(self._file)
            if error.errno not in BUSY:
                raise
            raise ConfigurationError(
                f"The state directory {path.parent} is in use by another loradock ({holder or 'unknown process'}). "
                "Stop it, or give this one its own --state-dir."
            ) from None
        with suppress(OSError):  # the lock holds without it, also on a full disk
            os.truncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process write."""
        os.close(self._file)
