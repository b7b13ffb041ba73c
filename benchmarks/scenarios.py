"""The situations in which pacing has to hold, each with fresh servers and real processes."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from benchmarks import figures
from benchmarks.lean_limits import Settings
from benchmarks.measures import Measure
from benchmarks.processes import Ended, Load, run_batchrun, run_plain_loop

_GUESS = 256  # requests in flight of a plain loop whose author knows no limit
_TRIES = 6  # batchrun's default


class Bench(Struct, frozen=True):
    """Where and how long."""

    place: Path  # an empty directory
    seconds: float  # of demand
    plain: bool = True  # run the plain loop too

    async def batchrun(
        self, settings: Settings, load: Load, *options: str, whole: bool = False, name: str = "ours"
    ) -> Ended:
        place = self.made(name)
        return await run_batchrun(place, load, settings, options, None if whole else self.seconds)

    async def plain_loop(
        self,
        settings: Settings,
        load: Load,
        concurrency: int = _GUESS,
        *,
        whole: bool = False,
        name: str = "plain",
    ) -> Ended | None:
        if not self.plain:
            return None
        place = self.made(name)
        seconds = None if whole else self.seconds
        return await run_plain_loop(place, load, settings, concurrency, seconds)

    def rows(self, per_s: float) -> int:
        """More than a server that answers so many a second gets through."""
        return int(per_s * self.seconds * 1.2) + 1000

    def made(self, name: str) -> Path:
        place = self.place / name
        place.mkdir()
        return place


class Scenario(Struct, frozen=True):
    """One row of the issue's table."""

    name: str
    title: str
    seconds: float
    measure: Callable[[Bench], Coroutine[None, None, list[Measure]]]


def _compare(
    what: str,
    figure: Callable[[Ended], float],
    ours: Ended,
    plain: Ended | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Measure:
    other = None if plain is None else figure(plain)
    return Measure(what, figure(ours), other, at_least, at_most)


def _lost(ours: Ended, plain: Ended | None) -> Measure:
    return _compare(
        "rows given up", lambda run: run.lost, ours, plain, at_least=0, at_most=0
    )  # -1: unknown


async def _requests(bench: Bench, *, hints: bool, share: float, refused: float) -> list[Measure]:
    settings, load = Settings(requests_per_s=200, hints=hints), Load(bench.rows(200))
    ours = await bench.batchrun(settings, load)
    plain = await bench.plain_loop(settings, load)
    seconds = bench.seconds
    return [
        *_shares("requests", ours, plain, seconds, share),
        _refused(ours, plain, seconds, refused),
        _lost(ours, plain),
    ]


def _shares(
    of: str, ours: Ended, plain: Ended | None, seconds: float, least: float
) -> list[Measure]:
    full = partial(figures.share, of=of, seconds=seconds)
    flow = partial(figures.share, of=of, seconds=seconds, at_start=False)
    return [
        _compare(f"share of the {of} allowed", full, ours, plain, at_least=least),
        _compare("the same, to what flowed in alone", flow, ours, plain),
    ]


def _refused(ours: Ended, plain: Ended | None, seconds: float, most: float) -> Measure:
    return _compare(
        "share refused", lambda run: figures.refused(run, seconds), ours, plain, at_most=most
    )


async def _told(bench: Bench) -> list[Measure]:
    return await _requests(bench, hints=True, share=0.98, refused=0.005)


async def _bare(bench: Bench) -> list[Measure]:
    return await _requests(bench, hints=False, share=0.94, refused=0.02)


async def _in_flight(bench: Bench) -> list[Measure]:
    settings, load = Settings(in_flight=32), Load(bench.rows(64))
    seconds = bench.seconds
    knows = await run_plain_loop(bench.made("knows"), load, settings, 32, seconds)
    ours = await bench.batchrun(settings, load)
    plain = await bench.plain_loop(settings, load)
    most = figures.accepted(knows, 0, seconds)
    return [
        _compare(
            "requests accepted, to those of a plain loop told 32",
            lambda run: figures.accepted(run, 0, seconds) / most,
            ours,
            plain,
            at_least=0.95,
        ),
        _refused(ours, plain, seconds, 0.02),
        _lost(ours, plain),
    ]


async def _tokens(bench: Bench) -> list[Measure]:
    settings = Settings(
        tokens_per_minute=600_000, output_tokens=200, output_sigma=0.8, latency_s=1.0
    )
    load = Load(bench.rows(30), input_chars=400, sigma=0.7)
    ours = await bench.batchrun(settings, load)
    plain = await bench.plain_loop(settings, load)
    seconds = bench.seconds
    return [
        *_shares("tokens", ours, plain, seconds, 0.95),
        _refused(ours, plain, seconds, 0.01),
        _lost(ours, plain),
    ]


async def _changes(bench: Bench) -> list[Measure]:
    third = bench.seconds / 3
    settings = Settings(requests_per_s=200, changes=((third, 0.5), (2 * third, 1.0)))
    load = Load(bench.rows(170))
    ours = await bench.batchrun(settings, load)
    plain = await bench.plain_loop(settings, load)
    measures = [
        _compare(
            f"seconds to the new level, {level} a second",
            partial(figures.seconds_to_level, level=level, from_s=from_s, to_s=from_s + third),
            ours,
            plain,
            at_most=5,
        )
        for level, from_s in ((100, third), (200, 2 * third))
    ]
    shares = _compare("share refused", lambda run: figures.refused(run, bench.seconds), ours, plain)
    return [*measures, shares]


async def _steady(bench: Bench) -> list[Measure]:
    settings, load = Settings(latency_s=1.0, spread=0.2), Load(bench.rows(256))
    ours = await bench.batchrun(settings, load, "--concurrency", "256")
    plain = await bench.plain_loop(settings, load, 256)
    from_s = min(5.0, bench.seconds / 2)
    return [
        _compare(
            "rows a second, to concurrency / latency",
            lambda run: figures.answered_per_s(run, from_s, bench.seconds) / 256,
            ours,
            plain,
            at_least=0.98,
        )
    ]


async def _outage(bench: Bench) -> list[Measure]:
    down = (bench.seconds / 4, bench.seconds * 3 / 4)
    settings, load = Settings(requests_per_s=100, outage=down), Load(int(50 * bench.seconds))
    ours = await bench.batchrun(settings, load, whole=True)
    plain = await bench.plain_loop(settings, load, whole=True)
    rows = figures.stored(ours.directory)
    return [
        _lost(ours, plain),
        Measure("rows stored as ok, of all", rows.ok / load.rows, at_least=1),
        Measure("exit code", ours.exit_code, at_most=0),
        _compare(
            "seconds from recovery to a send that is answered",
            lambda run: figures.first_accepted_s(run, down[1]) - down[1],
            ours,
            plain,
            at_most=2,
        ),
        Measure("most attempts of a row", rows.most_attempts, at_most=_TRIES),
        _compare(
            "seconds from recovery to nine tenths of what is allowed",
            lambda run: figures.seconds_to_rate(run, 90, down[1]),
            ours,
            plain,
        ),
        _compare("requests into the outage", lambda run: _within(run, *down), ours, plain),
    ]


def _within(run: Ended, from_s: float, to_s: float) -> int:
    return sum(from_s <= at_s < to_s for at_s in run.stats.arrived)


async def _slow(bench: Bench) -> list[Measure]:
    even = Settings(requests_per_s=50, latency_s=1.0)
    some = Settings(requests_per_s=50, latency_s=1.0, slow_every=200, slow_factor=60)
    load = Load(int(50 * bench.seconds))
    clean = await bench.batchrun(even, load, "--hedge", whole=True, name="clean")
    ours = await bench.batchrun(some, load, "--hedge", whole=True)
    plain = await bench.plain_loop(some, load, whole=True)
    return [
        _compare(
            "time, to batchrun's without slow attempts",
            lambda run: run.total_s / clean.total_s,
            ours,
            plain,
            at_most=1.1,
        ),
        _lost(ours, plain),
        Measure("attempts, to rows", len(ours.stats.arrived) / load.rows),
    ]


async def _capped(bench: Bench) -> list[Measure]:
    """Two runs side by side: short rows, where requests bind, and long ones, where tokens do."""
    short = Settings(output_tokens=20, output_sigma=0.3, output_most=100)
    long = Settings(output_tokens=250, output_sigma=0.6)
    options = ("--rpm", "600", "--tpm", "100000")
    minutes = bench.seconds / 60
    requests, used = await asyncio.gather(
        bench.batchrun(short, Load(bench.rows(10), 100), *options, name="short"),
        bench.batchrun(long, Load(bench.rows(6), 400), *options, name="long"),
    )
    attempts = figures.stored(used.directory).attempts
    came = [(at_s, 1) for at_s in requests.stats.arrived]
    return [
        Measure("most requests in a sliding minute", figures.peak(came), at_most=600),
        Measure(
            "most tokens in a minute up to a start",
            figures.peak_at_starts(attempts),
            at_most=100_000,
        ),
        Measure(
            "most tokens used in a sliding minute",
            figures.peak([(one.start_s, one.used) for one in attempts]),
        ),
        Measure(
            "share of --rpm, where it binds",
            figures.accepted(requests, 0, bench.seconds) / (600 * minutes),
            at_least=0.98,
        ),
        Measure(
            "share of --tpm, where it binds",
            figures.tokens(used, bench.seconds) / (100_000 * minutes),
            at_least=0.98,
        ),
    ]


SCENARIOS: Sequence[Scenario] = (
    Scenario("told", "hidden 200 requests/s, hints and headers", 60, _told),
    Scenario("bare", "hidden 200 requests/s, bare 429s", 60, _bare),
    Scenario("in-flight", "at most 32 in flight, else 503", 60, _in_flight),
    Scenario("tokens", "hidden 600,000 tokens/min, lengths mixed", 60, _tokens),
    Scenario("changes", "the limit halves after a third and comes back after two", 60, _changes),
    Scenario("steady", "no limit, latency 1 s, `--concurrency 256`, steady state", 60, _steady),
    Scenario("outage", "503s in the middle half", 60, _outage),
    Scenario("slow", "one attempt in 200 takes 60 times as long, `--hedge`", 60, _slow),
    Scenario("capped", "`--rpm 600`, `--tpm 100000`", 180, _capped),
)
