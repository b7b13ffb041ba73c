"""What one row costs, by part: `python -m benchmarks.parts` times batchrun's own functions.

Figures are CPU of the whole process, all threads counted, in µs a row: medians of several loops
over the same rows, each loop over one part alone. Where a part contains others, theirs are taken
off, so that the parts add up. The table in `benchmarks/README.md` has a column for before and one
for now; `--before` renews the former, else the latter is renewed. `--quick` writes nothing.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.bare_loop import freeze_collector
from benchmarks.batch_lines import write_lines
from benchmarks.lean_answers import lean_server
from benchmarks.machine import machine
from benchmarks.pages import read_lines
from benchmarks.pages import write_lines as write_page
from benchmarks.part_loops import IN_FLIGHT, loops_over, make_material
from benchmarks.rounds import LINE_BYTES
from benchmarks.timed import cores, pin

_PARTS = (
    "read and build: the line again, as a request",
    "places: what runs the rows",
    "gate: in and out, with all limits",
    "tries: the attempt, what follows, what it cost",
    "send and read: one exchange",
    "parse: the answer understood",
    "journal: one write for what arrives together",
    "count: the totals",
    "display: four looks a second at 5,000 rows/s, on a terminal",
    "columns: outcomes to Arrow",
    "journal read back, by the seal",
    "Parquet written, by the seal",
)
_SUM = "all"
_HEAD = ("| part of a row | before, µs | now, µs |", "| --- | --- | --- |")


def measure(rows: int, times: int) -> dict[str, float]:
    """µs a row, by part."""
    server_core, client_core = cores()
    pin(0, client_core)
    with tempfile.TemporaryDirectory(prefix="batchrun-parts-") as place_name:
        place = Path(place_name)
        lines = place / "lines.jsonl"
        write_lines(lines, rows, LINE_BYTES)
        with lean_server(place, server_core) as (url, _):
            material = make_material(lines, url)
            loops = loops_over(material, url)
            for loop in loops.values():  # once to warm up
                loop()
            freeze_collector()
            taken: dict[str, list[float]] = {name: [] for name in loops}
            for _ in range(times):
                for name, loop in loops.items():
                    taken[name].append(loop())
    return disjoint({name: median(each) / rows * 1e6 for name, each in taken.items()})


def disjoint(us: dict[str, float]) -> dict[str, float]:
    """By part, what each loop took less what other loops stand for."""
    figures = (
        us["read"],
        us["execute"] - us["settle"],
        us["gate"],
        us["settle"] - us["gate"] - us["parse"],
        us["send"],
        us["parse"],
        us["journal"],
        us["count"],
        us["show"],
        us["columns"],
        us["read back"],
        us["parquet"] - us["columns"],
    )
    return {**dict(zip(_PARTS, figures, strict=True)), _SUM: sum(figures)}


def with_column(page: Sequence[str], found: dict[str, float], *, is_before: bool) -> list[str]:
    """The table with these figures in one column, and the other as it stands on the page."""
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in page]
    others = {row[0]: row[2 if is_before else 1] for row in cells if len(row) == 3}
    lines = list(_HEAD)
    for name, figure in found.items():
        other, ours = others.get(name, ""), f"{figure:.1f}"
        before, now = (ours, other) if is_before else (other, ours)
        lines.append(f"| {name} | {before} | {now} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", action="store_true", help="renew the column for before")
    parser.add_argument("--quick", action="store_true", help="few rows; nothing is written")
    options = parser.parse_args()
    found = measure(200, 1) if options.quick else measure(5_000, 7)
    table = with_column(read_lines("parts"), found, is_before=options.before)
    said = f"On {machine()}, Batch lines of {LINE_BYTES:,} bytes, {IN_FLIGHT} in flight."
    print("\n".join([said, "", *table]))
    if not options.quick:
        write_page("parts", ["", said, "", *table, ""])
    return 0


if __name__ == "__main__":
    sys.exit(main())
