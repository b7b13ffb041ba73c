"""The first part of the speed benchmark: all clients in turn, round after round, and the ratios."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from msgspec import Struct

from benchmarks.batch_lines import write_lines
from benchmarks.contenders import CONTENDERS, Asked, Contender, Sent
from benchmarks.measures import Measure

LINE_BYTES = 1024
_TURNS = 4  # a client's rows are at least so many times what may be in flight

HEAD = (
    "| in flight | client | rows/s | batchrun's / it | CPU of 1,000 rows, ms | peak memory, MB |",
    "| --- | --- | --- | --- | --- | --- |",
)


class Rounds(Struct, frozen=True):
    """What was measured: by requests in flight and client's name, a run for each round."""

    runs: dict[tuple[int, str], list[Sent]]

    def clients(self, in_flight: int) -> list[Contender]:
        return [one for one in CONTENDERS if (in_flight, one.name) in self.runs]

    def ratio(self, in_flight: int, of: str, to: str) -> float:
        """Of rows a second: the median of the rounds' own ratios."""
        pairs = zip(self.runs[in_flight, of], self.runs[in_flight, to], strict=True)
        return median(one.rows_per_s / other.rows_per_s for one, other in pairs)


def measure_rounds(
    place: Path,
    url: str,
    core: int | None,
    *,
    levels: Sequence[int],
    rounds: int,
    share: float = 1.0,
    skip: Sequence[str] = (),
) -> Rounds:
    """Every client that is installed, in each round at each level; `share` of its full turn."""
    clients = [one for one in CONTENDERS if one.is_installed and one.name not in skip]
    rows = {
        (in_flight, one.name): max(int(one.rows_per_s * one.turn_s * share), _TURNS * in_flight)
        for in_flight in levels
        for one in clients
    }
    sources = _sources(place, max(rows.values()), {rows[level, "batchrun"] for level in levels})
    largest = sources[max(sources)]
    runs: dict[tuple[int, str], list[Sent]] = {key: [] for key in rows}
    for number in range(rounds):
        for in_flight in levels:
            for one in clients:
                count = rows[in_flight, one.name]
                source = sources[count] if one.name == "batchrun" else largest
                sent = one.send(Asked(source, count, url, in_flight, core, place))
                runs[in_flight, one.name].append(sent)
                print(
                    f"round {number + 1} of {rounds}, {in_flight} in flight, {one.name}: "
                    f"{sent.rows_per_s:,.0f} rows/s, {sent.cpu_us:,.1f} us of CPU a row",
                    flush=True,
                )
    return Rounds(runs)


def _sources(place: Path, most: int, counts: set[int]) -> dict[int, Path]:
    """Files of so many lines each, by their number."""
    sources = {}
    for count in sorted({most, *counts}):
        sources[count] = place / f"rows-{count}.jsonl"
        write_lines(sources[count], count, LINE_BYTES)
    return sources


def render_rounds(rounds: Rounds) -> list[str]:
    """The table's lines, medians over the rounds."""
    lines = list(HEAD)
    for in_flight in sorted({level for level, _ in rounds.runs}):
        for one in rounds.clients(in_flight):
            runs = rounds.runs[in_flight, one.name]
            rows_per_s = f"{median(run.rows_per_s for run in runs):,.0f}"
            if one.name == "batchrun":
                answers_per_s = median(run.answers_per_s for run in runs)
                rows_per_s += f" ({answers_per_s:,.0f} to the last answer)"
            ratio = rounds.ratio(in_flight, "batchrun", one.name)
            cpu_ms = median(run.cpu_us for run in runs)
            peak_mb = median(run.peak_bytes for run in runs) / 1e6
            lines.append(
                f"| {in_flight:,} | {one.title} | {rows_per_s} | {ratio:.2f} | {cpu_ms:,.1f} | "
                f"{peak_mb:,.0f} |"
            )
    return lines


def judge_rounds(rounds: Rounds) -> list[Measure]:
    """The issue's ratios, as far as they were measured: peers may not be installed."""
    levels = sorted({level for level, _ in rounds.runs})
    measures = []
    for level, to, least in ((64, "bare", 0.75), (256, "defaults", 1.1)):
        if (level, to) in rounds.runs:
            title = next(one.title for one in CONTENDERS if one.name == to)
            what = f"batchrun / {title}, {level} in flight"
            measures.append(Measure(what, rounds.ratio(level, "batchrun", to), at_least=least))
    peers = [one.name for one in rounds.clients(levels[0]) if one.is_peer]
    if peers:
        closest = min(rounds.ratio(level, "batchrun", peer) for level in levels for peer in peers)
        what = "batchrun / fastest peer, where it comes closest"
        measures.append(Measure(what, closest, at_least=2.5))
    if "openai-httpx" in peers:
        least_ratio = min(rounds.ratio(level, "batchrun", "openai-httpx") for level in levels)
        what = "batchrun / openai SDK as it comes, where it comes closest"
        measures.append(Measure(what, least_ratio, at_least=15))
    return measures
