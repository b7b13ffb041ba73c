"""The page of the nightly job: each of its commands is run, night after night, with fewer rows."""

import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.doc_examples import block, page, section
from tests.runs import read_record
from tests.waiting import HANG_S, wait_until

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_PAGE = "nightly-job"
_BEFORE, _NEW, _NIGHTS = 60, 20, 5


class Shop:
    """The folder of the job, its reviews and its shell."""

    def __init__(self, folder: Path, batchrun: Run, base_url: str) -> None:
        self.folder, self.rows, self.base_url = folder, 0, base_url
        self._batchrun = batchrun
        later = (datetime.now() + timedelta(hours=12)).strftime("%H:%M")  # noqa: DTZ005
        job = block(_PAGE, "The job", "toml").replace("06:30", later)
        (folder / "night.toml").write_text(job)

    def day(self, number: int, rows: int, where: str = "reviews", refused: int = 0) -> None:
        """The reviews of a day, the last of which the API refuses."""
        ids = [f"r{self.rows + at}" for at in range(rows)]
        products = [f"p{at % 3}" for at in range(rows - refused)] + ["p" * 600] * refused
        texts = [f"It is dangerous, recall it: {one}" if at % 7 == 3 else f"It is fine: {one}"
                 for at, one in enumerate(ids)]  # fmt: skip
        self.rows += rows
        path = self.folder / where / f"day=2026-12-{number:02}" / "reviews.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": ids, "product": products, "text": texts}), path)

    def run(self, command: str) -> CompletedProcess[str]:
        """As a shell in the folder does it."""
        if command.startswith("batchrun "):
            words = shlex.split(command)[1:]
            return self._batchrun(*words, env={"OPENAI_BASE_URL": self.base_url})
        return subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False
        )

    def type(self, title: str, first: int = 0, last: int | None = None) -> CompletedProcess[str]:
        """The commands of a section's blocks, each to its end; what the last one said."""
        blocks = re.findall(r"^```sh\n(.*?)^```", section(_PAGE, title), re.DOTALL | re.MULTILINE)
        for line in "".join(blocks[first:last]).splitlines():
            done = self.run(line)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done


@pytest.fixture
def shop(tmp_path: Path, batchrun: Run, simulator: Any) -> Shop:
    return Shop(tmp_path, batchrun, simulator("--latency", "0.02"))


def test_the_commands_of_the_page_do_what_it_says_for_five_nights(
    shop: Shop, query: Query, stats: Any, begin: Any
) -> None:
    run = shop.folder / "runs" / "reviews"
    url = shop.base_url
    shop.day(1, _BEFORE)
    first = shop.type("The first night")
    assert f"done: {_BEFORE} of {_BEFORE} rows, {_BEFORE} ok" in first.stderr
    where = "reviews"
    for night in range(2, 2 + _NIGHTS):
        sent = stats(url)["requests"]
        shop.day(night, _NEW, where, refused=1)
        if night == 3:
            _crash(begin, stats, url)
        if night == 4:
            moved = shop.type("The following nights", 1)
            assert "the source was" in moved.stderr
            assert moved.stderr.count("archive now; rows are known by their ids") == 1
            where = "archive"
        else:
            moved = shop.type("The following nights", 0, 1)
        assert f"1 of {_NEW} rows is not ok, as --tolerate 2 allows" in moved.stderr
        assert f"done: {shop.rows:,} of {shop.rows:,} rows" in moved.stderr
        in_flight = 1_000 if night == 3 else 0  # what the crash may cost again
        assert _NEW <= stats(url)["requests"] - sent <= _NEW + min(in_flight, _NEW)
    record = read_record(run)
    assert (record["state"], record["exit_code"]) == ("finished", 0)
    counted = (
        "SELECT count(*), count(DISTINCT custom_id), count(*) FILTER (NOT ok) FROM read_parquet(?)"
    )
    assert query(counted, "runs/reviews") == [(shop.rows, shop.rows, _NIGHTS)]
    shop.type("In the morning")
    empty = shop.run("batchrun run night.toml --quiet")  # a night without reviews
    assert empty.returncode == 0, empty.stderr
    _join(shop)


def _crash(begin: Any, stats: Any, url: str) -> None:
    before = stats(url)["completions"]
    words = ("run", "night.toml", "--quiet", "--concurrency", "2")
    process: Popen[str] = begin(*words, env={"OPENAI_BASE_URL": url})
    wait_until(lambda: stats(url)["completions"] > before + 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait(HANG_S)


def _join(shop: Shop) -> None:
    """The answers beside the table, as the page joins them."""
    shop.type("The answers beside your table")
    schema = pq.read_schema(shop.folder / "answers.parquet")
    types = {name: str(schema.field(name).type) for name in ("mood", "stars", "topics")}
    assert types["mood"] == "string"
    assert types["stars"] == "int64"
    assert types["topics"].startswith("list<")
    assert types["topics"].endswith("string>")
    sql = block(_PAGE, "The answers beside your table", "sql").replace("reviews/*", "archive/*")
    with duckdb.connect() as connection:
        connection.execute(f"SET file_search_path = '{shop.folder}'")
        rows = connection.execute(sql).fetchall()
        stars = connection.execute(
            "SELECT count(stars) FROM 'answers.parquet' WHERE tool_call_count = 0 AND ok"
        ).fetchall()[0][0]
    assert sum(reviews for _, reviews, *_ in rows) == shop.rows
    assert stars > 0
    calls = shop.run('batchrun sql runs/reviews "SELECT name FROM tool_calls" --format json')
    assert "recall" in {row["name"] for row in json.loads(calls.stdout)}


def test_a_night_beyond_its_cap_goes_on_the_next_night(shop: Shop, query: Query) -> None:
    shop.day(1, _BEFORE)
    job = shop.folder / "night.toml"
    text = job.read_text().replace("_usd = 5.0", "_usd = 0.01").replace("= 8000", "= 600")
    job.write_text(text.replace("tolerate = 2", 'tolerate = "100%"'))  # many are cut at 600
    nights = 0
    while (done := shop.run("batchrun run night.toml --quiet")).returncode == 3:
        assert "the budget of this command is used up" in done.stderr
        nights += 1
        assert nights < _BEFORE
    assert done.returncode == 0, done.stderr
    assert nights > 0
    counted = "SELECT count(*), count(DISTINCT custom_id) FROM read_parquet(?)"
    assert query(counted, "runs/reviews") == [(_BEFORE, _BEFORE)]


def test_the_page_appends_with_the_same_job(shop: Shop) -> None:
    """As the page says for millions of rows: the new folder alone."""
    shop.day(1, 6)
    assert shop.run("batchrun run night.toml --quiet").returncode == 0
    shop.day(2, 3)
    shutil.rmtree(shop.folder / "reviews" / "day=2026-12-01")
    assert "--append" in page(_PAGE)
    done = shop.run("batchrun run night.toml --quiet --append")
    assert done.returncode == 0, done.stderr
    assert "done: 9 of 9 rows, 9 ok" in done.stderr
