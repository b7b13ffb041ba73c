"""A run directory put right by the holder of its lock: seals finished, journal mended."""

import os
from pathlib import Path

from msgspec import Struct

from batchrun.store.damage import damage_warning, set_aside
from batchrun.store.disk import storing, sync_file
from batchrun.store.journal import Damage, Frame, Torn, scan
from batchrun.store.names import JOURNAL, RESPONSES, TOOL_CALLS, numbered, open_files, temporaries
from batchrun.store.seal import finish

_READ_BYTES = 1 << 20


class Recovered(Struct, frozen=True):
    """What earlier processes left."""

    segments: tuple[str, ...]  # names, each with outcomes that are in no part
    parts: int  # of `responses`
    warnings: tuple[str, ...]


def recover(folder: Path) -> Recovered:
    """Finishes or rolls back interrupted seals, then mends each segment. Raises `StoreError`."""
    journal = folder / JOURNAL
    warnings: list[str] = []
    segments = []
    with storing(folder, "recover"):
        for name in numbered(journal, ".intent"):
            finish(folder, name)
        for place in (folder, journal, folder / RESPONSES, folder / TOOL_CALLS):
            for path in temporaries(place):
                path.unlink()
        for name in open_files(journal):
            _mend(journal / name, warnings)
        for name in numbered(journal, ".log"):
            if _mend(journal / name, warnings):
                segments.append(name)
            else:
                (journal / name).unlink()
        parts = len(numbered(folder / RESPONSES, ".parquet"))
    return Recovered(tuple(segments), parts, tuple(warnings))


def _mend(path: Path, warnings: list[str]) -> int:
    """Cuts a torn tail, sets damaged bytes aside; how many rows are left. Raises `OSError`."""
    rows = 0
    cut_at = None
    with path.open("rb", buffering=_READ_BYTES) as file:
        for piece in scan(file):
            match piece:
                case Frame():
                    rows += piece.offset > 0  # the header stands at 0
                case Damage():
                    if set_aside(path, piece):
                        warnings.append(damage_warning(path, piece))
                case Torn():
                    cut_at = piece.offset
    if cut_at is not None:
        os.truncate(path, cut_at)
        sync_file(path)
    return rows
