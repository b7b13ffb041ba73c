"""Eval runs killed while they are sent, grown and scored: each answer once, none paid for twice."""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from tests.waiting import HANG_S

_KILLS = int(os.environ.get("EVAL_KILLS", "200"))
_MODES = ("plain", "stream", "background", "plain")
_PARTS = 8  # runs that share the kills of the long form
_IN_FLIGHT = {"plain": 4, "stream": 4, "background": 12}
_VARIANTS = ("gpt-4.1", "gpt-4.1-mini", "o3")
_MOST_ROWS, _MOST_SAMPLES = 48, 4
_SCORERS = """
[[scorers]]
kind = "number"
abs_tol = {number}
[[scorers]]
name = "own"
kind = "python"
function = "own.py:score"
"""
_OWN = """
def score(row):
    with open("scored", "ab") as file:
        file.write(b".")
    return {{"value": {number}, "answer": row["output_text"]}}
"""


class Kit(NamedTuple):
    """What a campaign needs of the fixtures."""

    folder: Path
    batchrun: Callable[..., CompletedProcess[str]]
    begin: Callable[..., "Popen[str]"]
    simulator: Callable[..., str]
    stats: Callable[..., dict[str, Any]]
    rows: list[dict[str, Any]]


class Campaign:
    """One run, which grows and is killed again and again; looked at after each kill."""

    def __init__(self, kit: Kit, mode: str, seed: int) -> None:
        self._kit, self._mode, self._dice = kit, mode, random.Random(seed)
        self._write("answers.jsonl", kit.rows)
        words = ("--latency", 0.02, "--answers", kit.folder / "answers.jsonl", "--right", "0.7,0.2")
        self._url = kit.simulator(*words, "--seed", seed)
        self._size, self._samples, self._variants = 4, 1, 1
        self._scorings = 0
        self._cut = 0  # commands that were killed while they may have sent
        self.kills: Counter[str] = Counter()

    def play(self, kills: int) -> None:
        while self.kills.total() < kills:
            self._grow()
            ways = [self._sending, self._sending, self._planning, self._scoring, self._both]
            self._dice.choice(ways)()
            self._look()
        self._finish()

    def _grow(self) -> None:
        """By rows, samples or variants, one at a time or together."""
        for what in self._dice.sample(("rows", "samples", "variants"), self._dice.randint(1, 2)):
            if what == "rows":
                self._size = min(_MOST_ROWS, self._size + self._dice.randint(1, 4))
            elif self._dice.random() < 0.3 and what == "samples":
                self._samples = min(_MOST_SAMPLES, self._samples + 1)
            elif self._dice.random() < 0.3:
                self._variants = min(len(_VARIANTS), self._variants + 1)
        self._write("prompts.jsonl", self._kit.rows[: self._size])

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self._kit.folder / name).write_text(text)

    def _words(self) -> Iterator[object]:
        yield from ("run", "prompts.jsonl", "--prompt", "{{ question }}", "-o", "run", "--mode")
        yield from (self._mode, "--base-url", self._url, "--samples", self._samples)
        yield from ("--concurrency", _IN_FLIGHT[self._mode])
        for name in _VARIANTS[: self._variants]:
            yield from ("--model", name)

    def _begun(self, *words: object) -> "Popen[str]":
        return self._kit.begin(*words, stdout=DEVNULL, stderr=DEVNULL)

    def _killed(self, name: str, process: "Popen[str]", moment: Callable[[], object]) -> bool:
        """Whether it still ran when its moment came; a command that had nothing to do did not."""
        end_s = time.monotonic() + HANG_S
        while process.poll() is None and not moment():
            assert time.monotonic() < end_s, "the moment never came"
            time.sleep(0.0005)
        time.sleep(self._dice.random() * 0.02)
        process.kill()
        killed = process.wait(HANG_S) < 0
        self.kills[name] += killed
        return killed

    def _paid(self) -> int:
        asked = self._kit.stats(self._url)
        name = "background" if self._mode == "background" else "completions"
        return int(asked["background"]["created"] if name == "background" else asked[name])

    def _sending(self) -> None:
        before, more = self._paid(), self._dice.randint(1, 10)
        process = self._begun(*self._words())
        self._cut += self._killed("sending", process, lambda: self._paid() >= before + more)

    def _planning(self) -> None:
        """From the start of the process to its first requests."""
        end_s = time.monotonic() + self._dice.random() * 0.8
        process = self._begun(*self._words())
        self._cut += self._killed("planning", process, lambda: time.monotonic() > end_s)

    def _changed_scorers(self) -> tuple[str, ...]:
        """Of which all rows are scored again."""
        self._scorings += 1
        folder = self._kit.folder
        (folder / "own.py").write_text(_OWN.format(number=self._scorings))
        (folder / "scorers.toml").write_text(_SCORERS.format(number=self._scorings / 1000))
        (folder / "scored").write_bytes(b"")
        return "score", "run", "scorers.toml"

    def _moment_of_scoring(self) -> Callable[[], object]:
        scores, scored = self._kit.folder / "run/scores", self._kit.folder / "scored"
        rows = self._dice.randint(1, 40)

        def inode() -> int:
            with suppress(OSError):
                return (scores / "number/scores.parquet").stat().st_ino
            return 0

        before = inode()
        return self._dice.choice(
            [
                lambda: any(scores.glob("*/.*.tmp")),
                lambda: scored.stat().st_size >= rows,  # some rows of the second scorer
                lambda: inode() != before,  # the first one's new file counts
            ]
        )

    def _scoring(self) -> None:
        words, moment = self._changed_scorers(), self._moment_of_scoring()
        if self._kit.folder.joinpath("run/run.json").exists():
            self._killed("scoring", self._begun(*words), moment)

    def _both(self) -> None:
        """Scored while it is sent; both are killed."""
        before = self._paid()
        words, moment = self._changed_scorers(), self._moment_of_scoring()
        run = self._begun(*self._words())
        while run.poll() is None and self._paid() < before + 2:
            time.sleep(0.0005)
        self._killed("scoring while sending", self._begun(*words), moment)
        self._cut += self._killed("sending while scored", run, lambda: True)

    def _look(self) -> None:
        """What must hold whenever a process was killed."""
        while self._kit.stats(self._url)["in_flight"]:
            time.sleep(0.005)
        if not self._kit.folder.joinpath("run/run.json").exists():
            return
        verified = self._kit.batchrun("verify", "run")
        assert verified.returncode == 0, verified.stdout
        assert max(self._stored().values(), default=1) == 1
        assert self._paid() - self._stored().total() <= self._cut * _IN_FLIGHT[self._mode]
        for path in self._kit.folder.glob("run/scores/*/scores.parquet"):
            table = pq.read_table(path)
            assert len(set(table["scorer_version"].to_pylist())) <= 1
            assert max(_keys(table.to_pylist()).values(), default=1) == 1

    def _stored(self) -> Counter[tuple[Any, ...]]:
        sql = "SELECT custom_id, sample, variant FROM responses"
        done = self._kit.batchrun("sql", "run", sql, "--format", "json")
        assert done.returncode == 0, done.stderr
        return _keys(json.loads(done.stdout))

    def _finish(self) -> None:
        """To its end: every row, sample and variant once, with a score of each scorer."""
        done = self._kit.batchrun(*self._words())
        assert done.returncode == 0, done.stderr
        names = _VARIANTS[: self._variants] if self._variants > 1 else (None,)
        wanted = {
            (f"q{row}", sample, name)
            for row in range(self._size)
            for sample in range(self._samples)
            for name in names
        }
        assert self._stored() == Counter(wanted)
        self._look()
        scored = self._kit.batchrun(*self._changed_scorers())
        assert scored.returncode == 0, scored.stderr
        found = self._scores()
        assert {name: _keys(rows) for name, rows in found.items()} == {
            "number": Counter(wanted), "own": Counter(wanted)
        }  # fmt: skip
        again = self._kit.batchrun("score", "run", "scorers.toml", "--again")
        assert again.returncode == 0, again.stderr
        assert _values(self._scores()) == _values(found)
        assert f"{len(wanted)} rows, each once" in self._kit.batchrun("verify", "run").stdout
        lines = json.loads(self._kit.batchrun("metrics", "run", "--format", "json").stdout)["lines"]
        counted = {(line["scorer"], line["variant"]): line for line in lines}
        assert set(counted) == {(one, name) for one in ("number", "own") for name in names}
        for line in lines:
            assert (line["questions"], line["scored"]) == (self._size, self._size * self._samples)

    def _scores(self) -> dict[str, list[dict[str, Any]]]:
        paths = self._kit.folder.glob("run/scores/*/scores.parquet")
        return {path.parent.name: pq.read_table(path).to_pylist() for path in paths}


def _keys(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter((row["custom_id"], row["sample"], row["variant"]) for row in rows)


def _values(found: dict[str, list[dict[str, Any]]]) -> dict[str, set[tuple[Any, ...]]]:
    fields = ("custom_id", "sample", "variant", "value", "passed", "answer", "target")
    return {
        name: {tuple(row[key] for key in fields) for row in rows} for name, rows in found.items()
    }


@pytest.fixture
def kit(
    tmp_path: Path,
    batchrun: Callable[..., CompletedProcess[str]],
    begin: Callable[..., "Popen[str]"],
    simulator: Callable[..., str],
    stats: Callable[..., dict[str, Any]],
    questions: Callable[..., list[dict[str, Any]]],
) -> Kit:
    rows = [{"id": f"q{at}", **row} for at, row in enumerate(questions(_MOST_ROWS))]
    return Kit(tmp_path, batchrun, begin, simulator, stats, rows)


@pytest.mark.parametrize(("mode", "kills", "seed"), [("plain", 3, 3), ("background", 2, 8)])
def test_kills_lose_nothing_and_pay_only_what_was_in_flight_again(
    kit: Kit, mode: str, kills: int, seed: int
) -> None:
    Campaign(kit, mode, seed).play(kills)


@pytest.mark.long
@pytest.mark.parametrize("part", range(_PARTS))
def test_two_hundred_kills_spread_over_samples_variants_and_scoring(kit: Kit, part: int) -> None:
    """EVAL_KILLS=N in the environment for another number in all."""
    kills = _KILLS // _PARTS + (part < _KILLS % _PARTS)
    campaign = Campaign(kit, _MODES[part % len(_MODES)], 100 + part)
    campaign.play(kills)
    if kills > 20:
        assert {"sending", "scoring", "sending while scored"} <= set(campaign.kills)
