"""One run ended again and again until nothing is left of it, and the laws that hold each time.

Kills, stops, disks that fail, two commands at once: each is a round.
"""

import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import pyarrow.parquet as pq

from batchrun.records import Answered
from batchrun.store.snapshot import snapshot
from batchrun.store.unfinished import read_open
from tests.processes import COMMAND, run_batchrun
from tests.runs import read_record
from tests.torture.figures import Figures
from tests.torture.moments import (
    Moment,
    Scene,
    come_about,
    is_holder,
    is_sealing,
    newest,
    stopping,
)
from tests.torture.prompts import Prompts
from tests.torture.purse import Purse
from tests.torture.server import Counts, Server
from tests.torture.shapes import Shape
from tests.waiting import HANG_S

_SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT twice")
_EXIT_CODES = {
    "SIGKILL": {-signal.SIGKILL},
    "another start, SIGKILL": {-signal.SIGKILL, 2},  # 2 where the other one came first
    "SIGTERM, SIGKILL": {-signal.SIGKILL, 143},
    # A shell calls both of each the same; the second is Python's own, once the run has ended.
    "SIGTERM": {143, -signal.SIGTERM},
    "SIGINT twice": {130, -signal.SIGINT},
    "disk": {1},
    "SIGINT, disk": {1, 130},  # 130 where nothing was written while it failed
}
_GENTLE = ("SIGTERM", "disk", "SIGINT, disk")  # what is in flight lands, and is stored
_BETWEEN_SIGNALS_S = 0.15


@dataclass(frozen=True)
class Stored:
    """What a run directory holds."""

    rows: tuple[int, ...] = ()  # in parts, then in the journal
    answers: int = 0  # that the server gave to them, and to rows that are asked for again
    in_journal: int = 0
    asked_again: tuple[int, ...] = ()  # rows without an outcome, with an answer on record


def stored(run: Path) -> Stored:
    """Read with the reader of the store itself; nothing is changed."""
    if not run.exists():
        return Stored()
    rows: list[int] = []
    answers = 0
    with snapshot(run) as now:
        for part in now.responses:
            table = pq.read_table(part, columns=["row", "attempts"])
            rows += table["row"].to_pylist()
            for attempts in table["attempts"].to_pylist():
                answers += sum(_is_answer(a["response_id"], a["error_kind"]) for a in attempts)
        journal = list(now.outcomes())
    rows += [outcome.request.row for outcome in journal]
    there = set(rows)
    last = {one.key: one.outcome for one in read_open(run) if isinstance(one, Answered)}
    waiting = [outcome for outcome in last.values() if outcome.request.row not in there]
    for outcome in (*journal, *waiting):
        answers += sum(_is_answer(a.response_id, a.error_kind) for a in outcome.attempts)
    again = tuple(outcome.request.row for outcome in waiting)
    return Stored(tuple(rows), answers, len(journal), again)


def _is_answer(response_id: str | None, error_kind: str | None) -> bool:
    """Whether an attempt brought a whole answer."""
    return response_id is not None and error_kind is None


class Campaign:
    """A run directory with a server of its own, from the first start to the end."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        shape: Shape,
        prompts: Prompts,
        seed: int,
    ) -> None:
        folder.mkdir(parents=True)
        self._folder, self._environment = folder, environment
        self._shape, self._prompts = shape, prompts
        self._dice = random.Random(seed)
        self._run = folder / "run"
        self._figures = Figures(runs=1, rows=shape.rows)
        self._before = Counts()
        self._stored = Stored()
        self._how = ""  # the last round ended
        self._paid: dict[str, int] = {}  # requests for each body that was stored at the last kill

    def play(self, moments: Sequence[Moment], purse: Purse) -> Figures:
        """Kills at these moments, over and over; once the purse is empty the run goes on alone."""
        began_s = time.monotonic()
        latency = ("--latency", str(self._shape.latency_s), "--latency-spread", "0")
        options = (*latency, "--retry-after", "0.05", *self._shape.faults)
        server = Server(self._folder, self._environment, *options)
        try:
            self._prompts.write(self._folder, server.base_url)
            for moment in chain.from_iterable(repeat(tuple(moments))):
                if not purse.take():
                    break
                if not self._kill(server, moment):
                    purse.put_back()
                    break
                self._look(server, f"{self._folder.name}, {moment}, {self._figures.starts}")
            self._end(server)
        finally:
            server.close()
        self._figures.seconds = time.monotonic() - began_s
        return self._figures

    def _kill(self, server: Server, moment: Moment) -> bool:
        """Whether a process was started and ended by a signal; it may end by itself before."""
        errors = self._folder / "errors.txt"
        highest, began_at = newest(self._run), time.time()
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [*COMMAND, "run", "job.toml"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                text=True,
            )
        self._figures.starts += 1
        scene = Scene(self._run, process, server, self._before.faults, highest, began_at)
        try:
            how = None
            if come_about(moment, scene, self._dice):
                how = self._signal(scene, moment)
            process.wait(HANG_S)
        finally:
            process.kill()
            process.wait(HANG_S)
        said, code = errors.read_text(), process.returncode
        assert "Traceback" not in said, f"{moment}: {said}"
        self._check_words(code, said)
        if code == 0:  # the signal found nothing to stop
            return False
        assert how is not None, f"{moment}: it ended by itself with {code}\n{said}"
        assert code in _EXIT_CODES[how], f"{moment}: {code} after {how}\n{said}"
        if code in (1, 130, 143):
            assert said.splitlines()[-1] == "next: batchrun run job.toml", said
        self._how = how
        self._figures.kills[how] += 1
        self._figures.moments[str(moment)] += 1
        return True

    def _check_words(self, code: int, said: str) -> None:
        """The exit code is that of the rule, and what is said of the end is so."""
        if (
            code < 0 or code == 2 or "nothing was sent" in said
        ):  # run.json is that of an earlier command
            return
        is_disk = re.search(r"failed: [\d,]+ of ", said) is not None
        assert (code == 1) == is_disk, f"{code}: {said}"
        try:
            record = read_record(self._run)
        except FileNotFoundError:  # it ended before anything was to be sent
            return
        if record["exit_code"] is None:  # the same: run.json is still that of a killed command
            return
        complete = len(set(stored(self._run).rows))
        assert record["exit_code"] == code, f"{record['exit_code']} is not {code}: {said}"
        assert record["totals"]["rows"] == complete, said
        if record["state"] == "finished":
            assert complete == self._shape.rows, said

    def _signal(self, scene: Scene, moment: Moment) -> str:
        """Does what ends the process; its name."""
        process, dice = scene.process, self._dice
        match moment:
            case Moment.STOP:
                process.send_signal(signal.SIGTERM)
                return "SIGTERM"
            case Moment.FULL_DISK | Moment.FULL_DISK_STOP:
                if moment is Moment.FULL_DISK_STOP:
                    process.send_signal(signal.SIGINT)
                files = [path for path in self._run.rglob("*") if path.is_file()]
                largest = max((path.stat().st_size for path in files), default=1)
                self._while_limited(process, resource.RLIMIT_FSIZE, dice.randint(1, largest))
                return "SIGINT, disk" if moment is Moment.FULL_DISK_STOP else "disk"
            case Moment.NO_DESCRIPTOR:
                taken = {int(entry.name) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
                lowest = min(set(range(len(taken) + 1)) - taken)
                self._while_limited(process, resource.RLIMIT_NOFILE, lowest)
                return "disk"
            case Moment.TWO_STARTS:
                self._start_another(scene)
                process.kill()
                return "another start, SIGKILL"
        if moment is Moment.STOPPING:
            process.send_signal(signal.SIGTERM)
            stopping(scene, dice)
            process.kill()
            return "SIGTERM, SIGKILL"
        # A signal that comes before anybody listens ends any program, with or without a word.
        how = dice.choice(_SIGNALS) if is_holder(scene) else "SIGKILL"
        if how == "SIGKILL":
            process.kill()
        elif how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            process.send_signal(signal.SIGINT)
            time.sleep(dice.uniform(0.0, _BETWEEN_SIGNALS_S))
            process.send_signal(signal.SIGINT)
        return how

    def _while_limited(self, process: subprocess.Popen[str], what: int, most: int) -> None:
        """The process may have no more of something until it has met the limit, and a while on."""
        with suppress(ProcessLookupError):
            hard = resource.prlimit(process.pid, what)
            resource.prlimit(process.pid, what, (most, hard[1]))
            time.sleep(self._dice.uniform(0.3, 1.6))
            resource.prlimit(process.pid, what, hard)

    def _start_another(self, scene: Scene) -> None:
        """One of the two has the directory, and the other sends nothing."""
        before = is_holder(scene)
        other = run_batchrun(self._folder, self._environment, "run", "job.toml", "--limit", "1")
        if before:
            assert other.returncode == 2, other.stderr
            assert f"in use by process {scene.process.pid}" in other.stderr
        assert other.returncode in (0, 2), other.stderr

    def _look(self, server: Server, where: str) -> None:
        """The laws that hold after each round."""
        figures, was_sealing = self._figures, is_sealing(self._run)
        now, held = server.at_rest(), stored(self._run)
        assert len(held.rows) == len(set(held.rows)), f"{where}: rows stand twice"
        assert set(held.rows) >= set(self._stored.rows), f"{where}: rows are gone"
        made = now.completions - self._before.completions
        made -= now.destroyed - self._before.destroyed
        lost = made - (held.answers - self._stored.answers)
        most = self._shape.concurrency
        if self._how in _GENTLE:
            most = 0
        assert 0 <= lost <= most, f"{where}: {lost} answers lost, {most} may be in flight"
        by_body = self._nothing_sent_again(server, where)
        keys = self._prompts.keys
        known = (*held.rows, *held.asked_again)
        self._paid = {keys[row]: by_body[keys[row]] for row in known}
        self._before, self._stored = now, held
        figures.in_journal += held.in_journal
        figures.in_parts += len(held.rows) - held.in_journal
        figures.amid_seals += was_sealing
        figures.lost += lost
        figures.asked_again += len(held.asked_again)
        figures.most_lost = max(figures.most_lost, lost / self._shape.concurrency)

    def _nothing_sent_again(self, server: Server, where: str) -> dict[str, int]:
        """Requests by body, after a look at those that were stored at the last kill."""
        by_body = server.requests_by_body()
        again = sum(by_body[key] - count for key, count in self._paid.items())
        assert not again, f"{where}: {again} requests for rows that were stored"
        return by_body

    def _end(self, server: Server) -> None:
        """Runs on to the end, and looks at everything that is left."""
        done = run_batchrun(self._folder, self._environment, "run", "job.toml")
        assert done.returncode == 0, done.stderr
        now = server.at_rest()
        self._nothing_sent_again(server, "at the end")
        assert now.most_in_flight <= self._shape.concurrency
        checked = run_batchrun(self._folder, self._environment, "verify", "run")
        assert checked.returncode == 0, checked.stderr + checked.stdout
        self._prompts.check(self._run)
        self._figures.requests, self._figures.completions = now.requests, now.completions
        self._figures.destroyed = now.destroyed
        self._figures.starts += 1
