"""Who is measured side by side: how each is started, and what its run came to.

What counts for every client is the time from its first request on. The loops and the peers store
nothing, and their time ends with the last answer. batchrun's ends when the last row stands in
Parquet and the journal is empty, so that no part of the storing is left out; its time up to the
last answer is told beside it.
"""

import json
import shutil
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from msgspec import Struct

from benchmarks.timed import ROOT, Break, Breaks, Timed, run_timed

PEERS = ROOT / ".peers"  # made by `make bench-peers`


class Asked(Struct, frozen=True):
    """One run: what is sent where."""

    source: Path  # batchrun reads all of it, so it holds just the rows that batchrun is to send
    rows: int
    url: str
    in_flight: int
    core: int | None
    place: Path  # a folder for what the run leaves


class Sent(Struct, frozen=True):
    """What a run came to."""

    rows: int
    began_at: float  # of the process; Unix time, as all of them
    first_at: float  # the first request
    last_at: float  # the last answer
    ended_at: float  # of what is counted
    cpu_s: float  # from the first request to the end of what is counted
    peak_bytes: int
    breaks: Sequence[Break] = ()  # when it was held up, which counts for nothing

    @property
    def rows_per_s(self) -> float:
        return self.rows / self._sending_s(self.ended_at)

    @property
    def answers_per_s(self) -> float:
        """The same up to the last answer."""
        return self.rows / self._sending_s(self.last_at)

    def _sending_s(self, to_at: float) -> float:
        held = [one for one in self.breaks if self.first_at <= one.from_at < to_at]
        return to_at - self.first_at - sum(one.to_at - one.from_at for one in held)

    @property
    def cpu_us(self) -> float:
        """Of CPU a row."""
        return self.cpu_s / self.rows * 1e6


class Contender(Struct, frozen=True):
    """A client, as a line of the table."""

    name: str
    title: str
    rows_per_s: int  # about; tells how many rows fill its turn
    arguments: Sequence[str]  # for its Python, before the usual four; none for batchrun
    python: Path = Path(sys.executable)
    options: Sequence[str] = ()  # after the four
    is_peer: bool = False
    turn_s: float = 4.0  # about, that it sends in a round

    @property
    def is_installed(self) -> bool:
        return self.python.exists()

    def send(self, asked: Asked) -> Sent:
        """Runs it. Ends the benchmark where a row was not answered."""
        if not self.arguments:
            return run_batchrun(asked)
        four = (str(asked.source), asked.url, str(asked.in_flight), str(asked.rows))
        command = [str(self.python), *self.arguments, *four, *self.options]
        run = run_timed(command, asked.place, asked.core, {"OPENAI_API_KEY": "none"})
        lines = run.said.splitlines()
        told = json.loads(lines[-1]) if run.exit_code == 0 and lines else {"ok": 0}
        if told["ok"] != asked.rows:
            raise SystemExit(f"{self.title}: {told['ok']} of {asked.rows} rows were answered")
        return _sent(asked.rows, run, told["first_at"], told["last_at"], told["last_at"])


def _peer(name: str, title: str, rows_per_s: int, module: str, *options: str) -> Contender:
    return Contender(
        name=name,
        title=title,
        rows_per_s=rows_per_s,
        arguments=("-m", f"benchmarks.peers.{module}"),
        python=PEERS / name.removesuffix("-aiohttp").removesuffix("-httpx") / "bin" / "python",
        options=options,
        is_peer=True,
    )


_BARE = ("-m", "benchmarks.bare_loop")
CONTENDERS = (
    Contender("bare", "bare aiohttp loop, tuned", 17_000, _BARE),
    Contender("defaults", "bare aiohttp loop, defaults", 11_000, _BARE, options=("--defaults",)),
    # Longer: the last part is sealed when nothing is sent any more, and weighs less in a real run.
    Contender("batchrun", "batchrun, everything stored", 11_000, (), turn_s=10.0),
    _peer("lm-deluge", "lm-deluge", 3_500, "lm_deluge_client"),
    _peer("openai-aiohttp", "openai SDK on aiohttp", 1_000, "openai_sdk", "--aiohttp"),
    _peer("openai-httpx", "openai SDK as it comes (httpx2)", 600, "openai_sdk"),
    _peer("async-batch-llm", "async-batch-llm", 450, "async_batch_llm_pool"),
    _peer("litellm", "litellm", 380, "litellm_sdk"),
)


def batchrun_command(asked: Asked, launcher: Sequence[str] = ("-m", "batchrun")) -> list[str]:
    return [
        *(sys.executable, *launcher, "run", str(asked.source), "--json", "--quiet"),
        *("-o", str(asked.place / "run"), "--base-url", asked.url),
        *("--concurrency", str(asked.in_flight)),
    ]


def run_batchrun(
    asked: Asked,
    launcher: Sequence[str] = ("-m", "batchrun"),
    *,
    keep: bool = False,
    environment: Mapping[str, str] | None = None,
    breaks: Breaks | None = None,
) -> Sent:
    """`batchrun run` to its end; its run directory is removed unless it is to be kept."""
    command = batchrun_command(asked, launcher)
    run = run_timed(command, asked.place, asked.core, environment, breaks)
    directory = asked.place / "run"
    said = json.loads(run.said) if run.exit_code == 0 else {"ok": 0}
    if said["ok"] != asked.rows:
        raise SystemExit(f"batchrun: {said['ok']} of {asked.rows} rows are ok")
    first_at, last_at = sent_between(directory)
    sent = _sent(asked.rows, run, first_at, last_at, stored_at(directory))
    if not keep:
        shutil.rmtree(directory)
    return sent


def _sent(rows: int, run: Timed, first_at: float, last_at: float, ended_at: float) -> Sent:
    return Sent(
        rows=rows,
        began_at=run.began_at,
        first_at=first_at,
        last_at=last_at,
        ended_at=ended_at,
        cpu_s=run.cpu_s(first_at, ended_at),
        peak_bytes=run.peak_bytes,
        breaks=run.breaks,
    )


def sent_between(directory: Path, first_row: int = 0) -> tuple[float, float]:
    """When the first request went out and the last answer was there, of the rows from this on."""
    tables = ds.dataset(directory / "responses")
    rows = tables.to_table(
        columns=["started_at", "finished_at"], filter=ds.field("row") >= first_row
    )
    first, last = pc.min(rows["started_at"]), pc.max(rows["finished_at"])
    return first.value / 1e6, last.value / 1e6


def stretches_s(directory: Path, sent: Sent) -> list[float | None]:
    """Seconds a row since the break before (or the first request), for each break of a run.

    None for a break before the first answer or after the last.
    """
    finished = ds.dataset(directory / "responses").to_table(columns=["finished_at"])["finished_at"]
    ends_us = sorted(finished.cast(pa.int64()).to_pylist())
    stretches: list[float | None] = []
    since_at = sent.first_at
    for held in sent.breaks:
        rows = bisect_left(ends_us, held.from_at * 1e6) - bisect_left(ends_us, since_at * 1e6)
        within = rows > 0 and held.from_at < sent.last_at
        stretches.append((held.from_at - since_at) / rows if within else None)
        since_at = max(held.to_at, sent.first_at)
    return stretches


def stored_at(directory: Path) -> float:
    """When the last row stood in Parquet: the run's last event, which follows the last seal."""
    last = json.loads((directory / "events.jsonl").read_bytes().splitlines()[-1])
    assert last["event"] == "finished"
    return datetime.fromisoformat(last["at"]).timestamp()
