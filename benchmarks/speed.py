"""Measures speed: `python -m benchmarks.speed` runs all parts and writes their tables.

Exit code 1 when a goal is missed. `--quick` runs everything with small numbers to see that it
works; its figures mean nothing and are written nowhere.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import scale
from benchmarks.contenders import CONTENDERS
from benchmarks.lean_answers import lean_server
from benchmarks.machine import machine
from benchmarks.measures import Measure
from benchmarks.pages import write_lines
from benchmarks.rounds import judge_rounds, measure_rounds, render_rounds
from benchmarks.timed import cores, pin

LEVELS = (64, 256, 1024)
_ROUNDS = 5
_PLAN_ROWS = 20_000
_STALL_ROWS = 150_000
_GOALS_HEAD = ("| figure | goal | measured |", "| --- | --- | --- |")


def main() -> int:
    options = _options()
    server_core, client_core = cores()
    pin(0, server_core)  # what measures must not take the client's core either
    with tempfile.TemporaryDirectory(prefix="batchrun-speed-", dir=options.place) as place_name:
        place = Path(place_name)
        with lean_server(place, server_core) as (url, server):
            measures = []
            if options.only != "scale":
                measures += _rounds(options, place, url, server, client_core)
            if options.only != "rounds":
                measures += _scale(options, scale.Bench(place, url, client_core), server)
    return int(not all(one.met for one in measures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="small numbers, nothing is written")
    parser.add_argument("--only", choices=["rounds", "scale"], help="one of the two parts")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"default {_ROUNDS}")
    names = [one.name for one in CONTENDERS if one.name != "batchrun"]
    parser.add_argument("--skip", action="append", choices=names, default=[], help="a client")
    parser.add_argument("--place", type=Path, help="for all files; the million rows take 3 GB")
    return parser.parse_args()


def _rounds(
    options: argparse.Namespace, place: Path, url: str, server: str, core: int | None
) -> list[Measure]:
    missing = [one.title for one in CONTENDERS if not one.is_installed]
    if missing:
        print(f"not installed (make bench-peers does it): {', '.join(missing)}")
    turns = 1 if options.quick else options.rounds
    rounds = measure_rounds(
        place,
        url,
        core,
        levels=LEVELS[:2] if options.quick else LEVELS,
        rounds=turns,
        share=0.05 if options.quick else 1.0,
        skip=options.skip,
    )
    for path in place.glob("rows-*.jsonl"):
        path.unlink()
    measures = judge_rounds(rounds)
    said = f"Medians of {turns} interleaved rounds on {_where(server, core)}."
    _tell(options, "speed", said, render_rounds(rounds), measures)
    return measures


def _scale(options: argparse.Namespace, bench: scale.Bench, server: str) -> list[Measure]:
    quick = options.quick
    sizes = scale.QUICK_SIZES if quick else scale.SIZES
    measures = scale.measure_help(bench.core)
    measures += scale.measure_plan(bench, 500 if quick else _PLAN_ROWS)
    measures += scale.measure_stalls(bench, 2_000 if quick else _STALL_ROWS)
    lines, by_size, source = scale.measure_sizes(bench, sizes)
    measures += by_size
    measures += scale.measure_resume(bench, source, sizes.largest)
    _tell(options, "scale", f"On {_where(server, bench.core)}.", lines, measures)
    return measures


def _where(server: str, core: int | None) -> str:
    shared = "client and server on one core each" if core is not None else "nothing pinned"
    return f"{machine()}; server: {server}; {shared}"


def _tell(
    options: argparse.Namespace,
    section: str,
    said: str,
    table: Sequence[str],
    measures: Sequence[Measure],
) -> None:
    lines = [said, "", *table, "", *_GOALS_HEAD, *[one.short_line() for one in measures]]
    print("\n".join(lines), flush=True)
    if not options.quick:
        write_lines(section, ["", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
