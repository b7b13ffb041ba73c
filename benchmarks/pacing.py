"""Measures pacing: `python -m benchmarks.pacing` runs all scenarios and writes their table.

Exit code 1 when a goal is missed. A scenario that is run at its full length renews its lines in
`benchmarks/README.md`; a shorter run is only printed.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.measures import Measure
from benchmarks.pages import read_lines, write_lines
from benchmarks.scenarios import SCENARIOS, Bench, Scenario

_HEAD = [
    "| scenario | figure | goal | batchrun | plain loop |",
    "| --- | --- | --- | --- | --- |",
]


def main() -> int:
    options = _options()
    if options.list:
        for one in SCENARIOS:
            print(f"{one.name:10} {one.title} ({one.seconds:.0f} s)")
        return 0
    # A shell that starts this in the background has it ignored, and so would the clients.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [one for one in SCENARIOS if not options.only or one.name in options.only]
    missed = 0
    print("\n".join(_HEAD))
    for scenario in chosen:
        seconds = options.seconds or scenario.seconds
        measures = _run(scenario, seconds, options.keep, plain=not options.no_plain)
        lines = [one.line(scenario.title) for one in measures]
        print("\n".join(lines), flush=True)
        missed += sum(not one.met for one in measures)
        if seconds == scenario.seconds and not options.no_plain:
            _renew(scenario, lines)
    return int(missed > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    names = [one.name for one in SCENARIOS]
    parser.add_argument("--only", action="append", choices=names, help="one; may be repeated")
    parser.add_argument("--seconds", type=float, help="of each run, in place of its full length")
    parser.add_argument("--no-plain", action="store_true", help="batchrun alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all files here")
    return parser.parse_args()


def _run(scenario: Scenario, seconds: float, keep: Path | None, *, plain: bool) -> list[Measure]:
    if keep is not None:
        place = keep / scenario.name
        place.mkdir(parents=True)
        return asyncio.run(scenario.measure(Bench(place, seconds, plain)))
    with tempfile.TemporaryDirectory(prefix="batchrun-pacing-") as place_name:
        return asyncio.run(scenario.measure(Bench(Path(place_name), seconds, plain)))


def _renew(scenario: Scenario, lines: list[str]) -> None:
    kept: dict[str, list[str]] = {one.title: [] for one in SCENARIOS}
    for line in read_lines("pacing"):
        title = line.split(" | ")[0].removeprefix("| ")
        if title in kept:
            kept[title].append(line)
    kept[scenario.title] = lines
    write_lines("pacing", ["", *_HEAD, *[line for one in kept.values() for line in one], ""])


if __name__ == "__main__":
    sys.exit(main())
