"""One run killed again and again until it ends, and the laws that hold at each kill."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import pyarrow.parquet as pq

from batchrun.records import Response
from batchrun.store.snapshot import snapshot
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
from tests.torture.server import LIMIT_S, Counts, Server
from tests.torture.shapes import Shape

_COMMAND = (sys.executable, "-m", "batchrun")
_SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT twice")
_EXIT_CODES = {
    "SIGKILL": {-signal.SIGKILL},
    "SIGTERM, SIGKILL": {-signal.SIGKILL, 143},
    # A shell calls both of each the same; the second is Python's own, once the run has ended.
    "SIGTERM": {143, -signal.SIGTERM},
    "SIGINT twice": {130, -signal.SIGINT},
}
_BETWEEN_SIGNALS_S = 0.15


@dataclass(frozen=True)
class Stored:
    """What a run directory holds."""

    rows: tuple[int, ...] = ()  # in parts, then in the journal
    answers: int = 0  # of them, rows that the server answered
    in_journal: int = 0


def stored(run: Path) -> Stored:
    """Read with the reader of the store itself; nothing is changed."""
    if not run.exists():
        return Stored()
    rows: list[int] = []
    answers = 0
    with snapshot(run) as now:
        for part in now.responses:
            table = pq.read_table(part, columns=["row", "tool_call_count"])
            rows += table["row"].to_pylist()
            answers += table.num_rows - table["tool_call_count"].null_count
        journal = list(now.outcomes())
    rows += [outcome.request.row for outcome in journal]
    answers += sum(isinstance(outcome.result, Response) for outcome in journal)
    return Stored(tuple(rows), answers, len(journal))


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
                [*_COMMAND, "run", "job.toml"],
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
            process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait(LIMIT_S)
        said, code = errors.read_text(), process.returncode
        assert "Traceback" not in said, f"{moment}: {said}"
        if code == 0:  # the signal found nothing to stop
            return False
        assert how is not None, f"{moment}: it ended by itself with {code}\n{said}"
        assert code in _EXIT_CODES[how], f"{moment}: {code} after {how}\n{said}"
        if code > 0:
            assert said.splitlines()[-1] == "next: batchrun run job.toml", said
        self._figures.kills[how] += 1
        self._figures.moments[str(moment)] += 1
        return True

    def _signal(self, scene: Scene, moment: Moment) -> str:
        """Sends what ends the process; its name."""
        process, dice = scene.process, self._dice
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

    def _look(self, server: Server, where: str) -> None:
        """The laws that hold at each kill."""
        figures, was_sealing = self._figures, is_sealing(self._run)
        now, held = server.at_rest(), stored(self._run)
        assert len(held.rows) == len(set(held.rows)), f"{where}: rows stand twice"
        assert set(held.rows) >= set(self._stored.rows), f"{where}: rows are gone"
        made = now.completions - self._before.completions
        made -= now.destroyed - self._before.destroyed
        lost = made - (held.answers - self._stored.answers)
        most = self._shape.concurrency
        assert 0 <= lost <= most, f"{where}: {lost} answers lost, {most} may be in flight"
        by_body = self._nothing_sent_again(server, where)
        keys = self._prompts.keys
        self._paid = {keys[row]: by_body[keys[row]] for row in held.rows}
        self._before, self._stored = now, held
        figures.in_journal += held.in_journal
        figures.in_parts += len(held.rows) - held.in_journal
        figures.amid_seals += was_sealing
        figures.lost += lost
        figures.most_lost = max(figures.most_lost, lost / most)

    def _nothing_sent_again(self, server: Server, where: str) -> dict[str, int]:
        """Requests by body, after a look at those that were stored at the last kill."""
        by_body = server.requests_by_body()
        again = sum(by_body[key] - count for key, count in self._paid.items())
        assert not again, f"{where}: {again} requests for rows that were stored"
        return by_body

    def _end(self, server: Server) -> None:
        """Runs on to the end, and looks at everything that is left."""
        done = self._batchrun("run", "job.toml")
        assert done.returncode == 0, done.stderr
        now = server.at_rest()
        self._nothing_sent_again(server, "at the end")
        assert now.most_in_flight <= self._shape.concurrency
        checked = self._batchrun("verify", "run")
        assert checked.returncode == 0, checked.stderr + checked.stdout
        self._prompts.check(self._run)
        self._figures.requests, self._figures.completions = now.requests, now.completions
        self._figures.destroyed = now.destroyed
        self._figures.starts += 1

    def _batchrun(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*_COMMAND, *words],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done
