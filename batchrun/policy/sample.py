"""Which rows a pilot sends: picked by chance, and the same at each call. Pure."""

import random
from collections.abc import Sequence

from batchrun.records import Pilot

_SEED = 7_411


def draw_pilot(
    before: Pilot | None, rows: int, settled: Sequence[int], is_bad: Sequence[int]
) -> Pilot:
    """So many rows of those that can be sent and are not settled, or all of these.

    `settled` and `is_bad` hold a mark for each row of the source, as far as it is asked for.
    Rows that an earlier pilot over as many rows picked stay; more are picked besides.
    """
    of = len(settled)
    kept = before.rows if before is not None and before.of == of else ()
    missing = rows - len(kept)
    if missing <= 0:
        return Pilot(kept, of)
    passed = set(kept)
    free = [
        row
        for row, (is_settled, bad) in enumerate(zip(settled, is_bad, strict=True))
        if not is_settled and not bad and row not in passed
    ]
    draw = random.Random(_SEED + len(kept))  # noqa: S311 - chance, not secrecy
    return Pilot((*kept, *draw.sample(free, min(missing, len(free)))), of)
