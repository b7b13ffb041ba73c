"""Random nights: inputs that grow, move, break and are fixed, commands that are stopped or killed.

After each command: each row is there once, nothing was paid for twice, and what is said is so.
"""

import gzip
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

from tests.runs import read_record, standing_rows
from tests.waiting import HANG_S, wait_until

Run = Callable[..., CompletedProcess[str]]

_SEEDS = 16
_ASK = ("--prompt", "{{ text }}", "--model", "gpt-4.1", "--set", "max_output_tokens=2000")


class Nights:
    """A run directory night after night, and what should be in it."""

    def __init__(self, folder: Path, batchrun: Run, base_url: str, chance: random.Random) -> None:
        self.folder, self.batchrun, self.chance = folder, batchrun, chance
        self.appends = chance.random() < 0.5
        self.rows: list[str] = []  # the lines of all nights, or of this one
        self.texts: dict[str, str] = {}  # id to the text that was answered, or is to be
        self.broken: dict[str, int] = {}  # id to its place in `rows`
        self.name, self.count = "in.jsonl", 0
        self.options: tuple[str, ...] = (
            *(*_ASK, "-o", "run", "--quiet", "--skip-bad-rows", "--base-url", base_url),
            *("--concurrency", "4", *(["--append"] if self.appends else [])),
        )
        self.killed = 0  # commands, each of which may cost as many answers as were in flight

    def grow(self) -> None:
        """The rows of a night, some of them broken."""
        if self.appends:
            self.rows, self.broken = [], {}
        for _ in range(self.chance.randint(3, 12)):
            name = f"r{self.count}"
            self.count += 1
            if self.chance.random() < 0.15:
                self.broken[name] = len(self.rows)
                self.rows.append(f'{{"id": "{name}", "text": }}')
            else:
                self._add(name)
        if not self.appends:
            self._shuffle()
        self._write()

    def _add(self, name: str) -> None:
        self.texts[name] = f"text of {name}"
        self.rows.append(json.dumps({"id": name, "text": self.texts[name]}))

    def _shuffle(self) -> None:
        self.chance.shuffle(self.rows)
        self.broken = {name: at for at, row in enumerate(self.rows) for name in self.broken
                       if f'"{name}"' in row}  # fmt: skip

    def fix(self) -> None:
        """Some broken lines are whole now, at their places."""
        for name, at in list(self.broken.items()):
            if self.chance.random() < 0.6:
                del self.broken[name]
                self.texts[name] = f"text of {name}"
                self.rows[at] = json.dumps({"id": name, "text": self.texts[name]})
        self._write()

    def move(self) -> None:
        """The source has another name, and perhaps another packing."""
        if self.appends:  # its name stands for its broken lines
            return
        (self.folder / self.name).unlink()
        self.name = f"in{self.count}.jsonl" + self.chance.choice(["", ".gz"])
        self._write()

    def _write(self) -> None:
        text = "\n".join(self.rows).encode()
        packed = gzip.compress(text) if self.name.endswith(".gz") else text
        (self.folder / self.name).write_bytes(packed)

    def stopped(self) -> None:
        """A command that ends early, or is done."""
        ways = (("--limit", "4"), ("--max-cost-per-command", "0.02"), ("--stop-at", "1s"), ())
        done = self.run(*self.chance.choice(ways))
        assert done.returncode in (0, 3, 4), done.stderr
        self.check()

    def kill(self, begin: Any, completions: Callable[[], int]) -> None:
        before = completions()
        process: Popen[str] = begin("run", self.name, *self.options)
        wait_until(lambda: process.poll() is not None or completions() > before + 1)
        self.killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_S)

    def whole(self) -> None:
        """A command to its end: every row is there, once, as it is now."""
        done = self.run()
        assert done.returncode == (4 if self.bad_rows() else 0), done.stderr
        self.check()
        standing = self.standing()
        assert {name for name, (ok, _) in standing.items() if ok} == set(self.texts)
        record = read_record(self.folder / "run")
        assert record["state"] == "finished"
        assert record["rows"] == record["totals"]["rows"] == len(standing)

    def run(self, *more: str) -> CompletedProcess[str]:
        return self.batchrun("run", self.name, *self.options, *more)

    def bad_rows(self) -> int:
        return sum(not ok for ok, _ in self.standing().values())

    def standing(self) -> dict[str, tuple[bool, int]]:
        return standing_rows(self.folder / "run") if (self.folder / "run").exists() else {}

    def check(self) -> None:
        """What is true after any command that ended by itself."""
        standing = self.standing()  # no row stands twice
        for name, (ok, attempts) in standing.items():
            assert (attempts == 1) == ok, name
        proved = self.batchrun("verify", "run")
        assert proved.returncode == 0, proved.stdout
        status = json.loads(self.batchrun("status", "run", "--json").stdout)
        assert status["ok"] == sum(ok for ok, _ in standing.values())
        assert status["not_ok"] - status["again"] <= len(standing) - status["ok"]
        assert (status["left"] == 0) == (status["state"] == "finished"), status


@pytest.mark.long
@pytest.mark.parametrize("seed", range(_SEEDS))
def test_random_nights(
    seed: int, tmp_path: Path, batchrun: Run, simulator: Any, stats: Any, begin: Any
) -> None:
    chance = random.Random(seed)
    base_url = simulator("--latency", "0.03")
    nights = Nights(tmp_path, batchrun, base_url, chance)
    for _ in range(chance.randint(2, 3)):
        nights.grow()
        for _ in range(chance.randint(0, 2)):
            step = chance.choice(["stopped", "kill", "fix", "move"])
            if step == "kill":
                nights.kill(begin, lambda: stats(base_url)["completions"])
            else:
                getattr(nights, step)()
        nights.whole()
        if chance.random() < 0.5:
            nights.fix()
            nights.whole()
        again = nights.run()  # the same command once more sends nothing
        assert "0 complete" not in again.stderr
    paid = stats(base_url)["completions"]
    assert len(nights.texts) <= paid <= len(nights.texts) + 4 * nights.killed
