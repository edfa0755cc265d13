"""What the engine should be made for: the adapters that are there when it starts, registered or about to be."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from service.adapter.config import CONFIG, is_rank
from service.adapter.files import CONFIG_LIMIT, parse_object, read_bytes
from service.engine.sizing import Known
from service.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from service.registry.refs import Ref

MOST_DIRECTORIES = 10_000


def outlook(refs: Mapping[str, Ref], adapters_dir: Path | None) -> Known:
    """Adapters that are served or may be once the directory has been scanned; of the latter only what they claim.

    Reads references and configurations, no weights. What can't be read claims nothing; its own judgement comes later.
    """
    served = {name: ref.current.rank for name, ref in refs.items() if ref.current}
    gone = {name for name, ref in refs.items() if ref.removed is not None}
    claims = dict(_claims(adapters_dir, served.keys() | gone)) if adapters_dir else {}
    return Known(len(served) + len(claims), max(served.values(), default=0), max(claims.values(), default=0))


def _claims(home: Path, left_out: set[str]) -> Iterator[tuple[str, int]]:
    """Subdirectory → the largest rank its configuration speaks of."""
    with suppress(OSError):
        for directory in islice(home.iterdir(), MOST_DIRECTORIES):
            if directory.name.startswith(".") or directory.name in left_out:
                continue
            with suppress(OSError, ValueError, Rejected):
                if data := read_bytes(directory, CONFIG, CONFIG_LIMIT):
                    yield directory.name, _largest_rank(parse_object(data))


def _largest_rank(fields: Mapping[str, Any]) -> int:
    table = fields.get("rank_pattern")
    ranks = [fields.get("r"), *(table.values() if isinstance(table, dict) else ())]
    return max((rank for rank in ranks if is_rank(rank)), default=0)
