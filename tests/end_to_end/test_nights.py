"""Runs that go on night after night: appended inputs, moved sources, caps, times, bad rows."""

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE, CompletedProcess
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.doc_examples import page
from tests.processes import free_port
from tests.remedies import remedies, remedy
from tests.runs import read_record

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]
Rows = Sequence[dict[str, Any]]

_ASK = ("--prompt", "{{ text }}", "--model", "gpt-4.1")
_TO = (*_ASK, "-o", "run", "--simulate", "--quiet")
_ROWS = "SELECT custom_id, row, ok FROM read_parquet(?) ORDER BY row"


def _night(number: int, rows: int = 3, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"n{number}-{at}", "text": f"row {at} of {number}", **more} for at in range(rows)
    ]


def _verified(batchrun: Run) -> None:
    proved = batchrun("verify", "run")
    assert proved.returncode == 0, proved.stdout


def _schemas(folder: Path) -> set[tuple[str, ...]]:
    return {tuple(pq.read_schema(part).names) for part in folder.glob("run/responses/*.parquet")}


# Appended inputs.


def test_each_night_appends_its_rows(
    tmp_path: Path, write_rows: Any, batchrun: Run, query: Query
) -> None:
    for number in (1, 2):
        write_rows(_night(number), f"{number}.jsonl")
    assert batchrun("run", "1.jsonl", *_TO).returncode == 0
    refused = batchrun("run", "2.jsonl", *_TO)
    assert refused.returncode == 2
    assert "3 complete rows do not agree" in refused.stderr
    assert "n1-0 (row 0): removed" in refused.stderr
    assert ["--append"] in remedies(refused.stderr)
    assert ["--rerun-changed"] in remedies(refused.stderr)
    done = batchrun("run", "2.jsonl", *_TO, *remedy(refused.stderr, "--append"))
    assert done.returncode == 0, done.stderr
    assert "done: 6 of 6 rows, 6 ok" in done.stderr
    write_rows([*_night(3, 2), *_night(2, 1)], "3.jsonl")  # it remembers; one row is known
    done = batchrun("run", "3.jsonl", *_TO)
    assert done.returncode == 0, done.stderr
    names = [f"n{number}-{at}" for number in (1, 2) for at in range(3)]
    assert query(_ROWS) == [(name, at, True) for at, name in enumerate([*names, "n3-0", "n3-1"])]
    record = read_record(tmp_path / "run")
    assert (record["rows"], record["totals"]["rows"], record["appends"]) == (8, 8, True)
    status = json.loads(batchrun("status", "run", "--json").stdout)
    assert (status["state"], status["rows"], status["left"]) == ("finished", 8, 0)
    again = batchrun("run", "1.jsonl", *_TO, "--append")
    assert (again.returncode, query("SELECT count(*) FROM read_parquet(?)")) == (0, [(8,)])
    _verified(batchrun)


def test_an_appended_input_goes_on_where_it_was_stopped(
    write_rows: Any, batchrun: Run, query: Query
) -> None:
    for number in (1, 2, 3):
        write_rows(_night(number, 4), f"{number}.jsonl")
    assert batchrun("run", "1.jsonl", *_TO).returncode == 0
    part = batchrun("run", "2.jsonl", *_TO, "--append", "--limit", "1")
    assert part.returncode == 0
    status = json.loads(batchrun("status", "run", "--json").stdout)
    assert (status["state"], status["left"]) == ("limited", 3)
    other = batchrun("run", "3.jsonl", *_TO, "--append", "--limit", "1")
    assert "3 rows of" in other.stderr
    assert "2.jsonl had no outcome" in other.stderr
    for name in ("2.jsonl", "3.jsonl"):
        assert batchrun("run", name, *_TO, "--append").returncode == 0
    rows = query(_ROWS)
    assert len(rows) == len({row for _, row, _ in rows}) == 12
    assert [row for _, row, _ in rows] == list(range(12))
    _verified(batchrun)


@pytest.mark.long
def test_a_changed_row_of_an_appended_input_keeps_its_number(
    write_rows: Any, batchrun: Run, query: Query
) -> None:
    write_rows(_night(1), "1.jsonl")
    write_rows(_night(2), "2.jsonl")
    assert batchrun("run", "1.jsonl", *_TO, "--append").returncode == 0
    assert batchrun("run", "2.jsonl", *_TO, "--append").returncode == 0
    changed = _night(2)
    changed[1]["text"] = "another text"
    write_rows([changed[1], *_night(3, 1)], "2.jsonl")
    refused = batchrun("run", "2.jsonl", *_TO)
    assert refused.returncode == 2
    assert "    request.input: row 1 of 2 -> another text" in refused.stderr
    done = batchrun("run", "2.jsonl", *_TO, *remedy(refused.stderr, "--rerun-changed"))
    assert done.returncode == 0, done.stderr
    rows = query(
        "SELECT custom_id, row, len(attempts) FROM read_parquet(?) WHERE row > 3 ORDER BY 2"
    )
    assert rows == [("n2-1", 4, 2), ("n2-2", 5, 1), ("n3-0", 6, 1)]
    _verified(batchrun)


def test_rows_that_are_known_by_number_cannot_be_appended(
    write_rows: Any, batchrun: Run, tmp_path: Path
) -> None:
    rows = [{"name": f"r{at}", "text": "a"} for at in range(3)]
    write_rows(rows, "1.jsonl")
    refused = batchrun("run", "1.jsonl", *_TO, "--append")
    assert refused.returncode == 2
    assert "--append needs rows with ids, and 1.jsonl:1 has none" in refused.stderr
    assert not (tmp_path / "run").exists()
    named = ("--id", "name", "--append")
    assert batchrun("run", "1.jsonl", *_TO, *named).returncode == 0


def test_rows_by_number_are_not_offered_to_be_appended(write_rows: Any, batchrun: Run) -> None:
    write_rows([{"text": text} for text in "abc"])
    assert batchrun("run", "prompts.jsonl", *_TO).returncode == 0
    write_rows([{"text": text} for text in "ab"])
    refused = batchrun("run", "prompts.jsonl", *_TO)
    assert refused.returncode == 2
    assert "--append" not in refused.stderr
    assert batchrun("run", "prompts.jsonl", *_TO, "--rerun-changed").returncode == 0


@pytest.mark.long
def test_a_bad_row_of_each_night_is_stored_once(
    tmp_path: Path, batchrun: Run, query: Query
) -> None:
    for number in (1, 2):
        rows = "".join(json.dumps(row) + "\n" for row in _night(number, 2))
        (tmp_path / "new.jsonl").write_text(rows + f'{{"id": broken {number}\n')
        done = batchrun("run", "new.jsonl", *_TO, "--append", "--skip-bad-rows")
        assert done.returncode == 4, done.stderr
        again = batchrun("run", "new.jsonl", *_TO, "--append", "--skip-bad-rows")
        assert again.returncode == 4
    found = query(
        "SELECT custom_id, row FROM read_parquet(?) WHERE status = 'invalid' ORDER BY row"
    )
    assert [row for _, row in found] == [2, 5]
    assert all(re.fullmatch(r"new\.jsonl:3 \(bad row \w{8}\)", name) for name, _ in found)
    _verified(batchrun)


@pytest.mark.long
def test_a_broken_line_of_an_appended_input_is_fixed(
    tmp_path: Path, batchrun: Run, query: Query
) -> None:
    words = (*_TO, "--append", "--skip-bad-rows")
    for name in ("1", "2"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(f'{{"id": "a{name}", "text": "A"}}\n\n{{"id": "b{name}", "text": ')
        assert batchrun("run", path.name, *words).returncode == 4
    path.write_text(path.read_text() + '"B"}')
    done = batchrun("run", path.name, *words)
    assert done.returncode == 4, done.stderr  # the other night's
    assert query("SELECT custom_id FROM read_parquet(?) WHERE ok ORDER BY 1") == [
        *(("a1",), ("a2",), ("b2",)),
    ]
    assert query("SELECT source FROM read_parquet(?) WHERE NOT ok") == [("1.jsonl",)]
    _verified(batchrun)


@pytest.mark.long
def test_standard_input_is_appended(batchrun: Run, query: Query) -> None:
    texts = ["".join(json.dumps(row) + "\n" for row in _night(number)) for number in (1, 2, 3)]
    assert batchrun("run", "-", *_TO, "--append", text=texts[0]).returncode == 0
    assert batchrun("run", "-", *_TO, "--append", text=texts[1]).returncode == 0
    assert batchrun("run", "-", *_TO, "--append", "--limit", "1", text=texts[2]).returncode == 0
    refused = batchrun("run", "-", *_TO, "--append", text=texts[0])
    assert refused.returncode == 2
    assert "2 rows of the last standard input have no outcome yet" in refused.stderr
    assert batchrun("run", "-", *_TO, "--append").returncode == 0  # no input: what is stored
    assert [row for _, row, _ in query(_ROWS)] == list(range(9))
    assert batchrun("run", "-", *_TO, "--append", text=texts[0]).returncode == 0
    _verified(batchrun)


# Sources that move.


def test_a_source_that_moved_goes_on_and_says_so(
    tmp_path: Path, write_rows: Any, batchrun: Run
) -> None:
    write_rows(_night(1), "a.jsonl")
    assert batchrun("run", "a.jsonl", *_TO, "--limit", "1").returncode == 0
    (tmp_path / "there").mkdir()
    moved = (tmp_path / "a.jsonl").rename(tmp_path / "there" / "renamed.jsonl")
    done = batchrun("run", "there/renamed.jsonl", *_TO, "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert f"the source was {tmp_path}/a.jsonl and is there/renamed.jsonl now" in done.stderr
    assert "known by their ids" in done.stderr
    packed = tmp_path / "renamed.jsonl.gz"
    packed.write_bytes(gzip.compress(moved.read_bytes()))
    moved.unlink()
    done = batchrun("run", "renamed.jsonl.gz", *_TO)
    assert done.returncode == 0, done.stderr
    assert "is renamed.jsonl.gz now" in done.stderr
    _verified(batchrun)


@pytest.mark.long
def test_a_source_in_another_format_goes_on(
    tmp_path: Path, write_rows: Any, batchrun: Run, query: Query
) -> None:
    write_rows(_night(1), "a.jsonl")
    assert batchrun("run", "a.jsonl", *_TO, "--limit", "2").returncode == 0
    rows = _night(1)
    table = pa.table({name: [row[name] for row in rows] for name in ("id", "text")})
    (tmp_path / "hive" / "day=1").mkdir(parents=True)
    pq.write_table(table, tmp_path / "hive" / "x.parquet")
    done = batchrun("run", "hive", *_TO)
    assert (done.returncode, query("SELECT count(*) FROM read_parquet(?)")) == (0, [(3,)])
    text = "".join(json.dumps(row) + "\n" for row in rows)
    done = batchrun("run", "-", *_TO, text=text)
    assert done.returncode == 0, done.stderr
    assert "is standard input now" in done.stderr
    write_rows(rows, "b.jsonl")
    done = batchrun("run", "b.jsonl", *_TO)
    assert "the source was standard input and is b.jsonl now" in done.stderr
    assert "the source was" not in batchrun("run", "b.jsonl", *_TO).stderr
    _verified(batchrun)


@pytest.mark.long
def test_both_moved_together_is_nothing_to_say(
    tmp_path: Path, write_rows: Any, batchrun: Run
) -> None:
    (tmp_path / "one").mkdir()
    write_rows(_night(1), "one/a.jsonl")
    words = (*_ASK, "--simulate", "--quiet")
    assert batchrun("run", "one/a.jsonl", *words, "-o", "one/run").returncode == 0
    shutil.move(tmp_path / "one", tmp_path / "two")
    done = batchrun("run", "two/a.jsonl", *words, "-o", "two/run")
    assert done.returncode == 0
    assert "the source was" not in done.stderr


# What has changed.


def test_what_changed_is_said_field_by_field(write_rows: Any, batchrun: Run) -> None:
    rows = [{**row, "tools": [], "metadata": {"team": "a"}} for row in _night(1)]
    send = ("--send", "metadata", "--send", "tools")
    write_rows(rows, "a.jsonl")
    first = batchrun("run", "a.jsonl", *_TO, *send)
    assert first.returncode == 0, first.stderr
    rows[0]["text"] = "A long text " * 20 + "with an end that differs"
    rows[1]["metadata"] = {"team": "b", "more": "x"}
    write_rows(rows, "a.jsonl")
    model = [word if word != "gpt-4.1" else "gpt-4.1-mini" for word in (*_TO, *send)]
    refused = batchrun("run", "a.jsonl", *model)
    assert refused.returncode == 2
    said = refused.stderr
    assert "3 complete rows do not agree" in said
    assert "    request.model: gpt-4.1 -> gpt-4.1-mini\n" in said
    assert "    request.input: row 0 of 1 -> A long text " in said
    assert "    request.metadata.team: a -> b\n" in said
    assert "    request.metadata.more: (absent) -> x\n" in said
    assert said.index("Start a new run directory with -o") < said.index("--rerun-changed")
    fresh = batchrun("run", "a.jsonl", *[word if word != "run" else "other" for word in model])
    assert fresh.returncode == 0, fresh.stderr
    again = batchrun("run", "a.jsonl", *model, *remedy(said, "--rerun-changed"))
    assert again.returncode == 0, again.stderr


def test_without_stored_requests_the_settings_that_differ_are_said(
    write_rows: Any, batchrun: Run, write_job: Any
) -> None:
    text = (
        "[input]\npath = 'a.jsonl'\n[request]\nmodel = 'gpt-4.1'\ninput = '{{ text }}'\n"
        "temperature = 0.5\n[output]\nstore_request = false\npath = 'run'\n"
    )
    write_rows(_night(1, 12), "a.jsonl")
    assert batchrun("run", write_job(text), "--simulate", "--quiet").returncode == 0
    job = write_job(text.replace("0.5", "0.25").replace("{{ text }}", "Say {{ text }}"))
    refused = batchrun("run", job, "--simulate")
    assert refused.returncode == 2
    assert "    request.temperature: 0.5 -> 0.25\n" in refused.stderr
    assert "    request.input: {{ text }} -> Say {{ text }}\n" in refused.stderr
    assert refused.stderr.count("request.temperature") == 1  # one change of ten rows
    assert refused.stderr.count("its request has changed") == 10
    write_job(text)
    rows = _night(1, 12)
    rows[4]["text"] = "other"
    write_rows(rows, "a.jsonl")
    refused = batchrun("run", job, "--simulate")
    assert "as no setting has changed (requests are not stored)" in refused.stderr


# Bad rows that are fixed.


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ('{"id": "b", "text": ', True),
        ('{"id": "b", "text": null}', False),
        *(
            pytest.param(broken, named, marks=pytest.mark.long)
            for broken, named in (
                ('{"id": "b", "text": ', False),
                ('{"id": "b", "text": null}', True),
                ("{}", True),
                ("{}", False),
            )
        ),
    ],
)
def test_a_fixed_bad_row_is_sent_and_replaces_its_invalid_row(
    tmp_path: Path, batchrun: Run, query: Query, broken: str, named: bool
) -> None:
    lines = ['{"id": "a", "text": "A"}', broken, '{"id": "c", "text": "C"}']
    if not named:
        lines = [re.sub(r'"id": "\w", ', "", line) for line in lines]
    elif broken == "{}":
        lines = [line.replace('"id"', '"custom_id"') for line in lines]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    done = batchrun("run", "a.jsonl", *_TO, "--skip-bad-rows")
    assert done.returncode == 4, done.stderr
    same = batchrun("run", "a.jsonl", *_TO, "--skip-bad-rows")
    assert same.returncode == 4
    assert query("SELECT count(*) FROM read_parquet(?) WHERE status = 'invalid'") == [(1,)]
    lines[1] = lines[0].replace('"a"', '"b"').replace("A", "B")
    path.write_text("\n".join(lines))
    done = batchrun("run", "a.jsonl", *_TO)
    assert done.returncode == 0, done.stderr
    assert "done: 3 of 3 rows, 3 ok" in done.stderr
    rows = query("SELECT custom_id, row, ok, len(attempts), request->>'input' FROM read_parquet(?)")
    ids = "abc" if named else "012"
    assert sorted(rows) == [(ids[at], at, True, 1, "ABC"[at]) for at in range(3)]
    _verified(batchrun)


@pytest.mark.long
def test_a_fixed_row_beyond_the_limit_stays_invalid_until_it_is_sent(
    tmp_path: Path, batchrun: Run, query: Query
) -> None:
    lines = [f'{{"id": "{name}", "text": "{name}"}}' for name in "abcd"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines[:3], '{"id": "d", "text": null}']))
    assert batchrun("run", "a.jsonl", *_TO, "--skip-bad-rows").returncode == 4
    path.write_text("\n".join(lines))
    part = batchrun("run", "a.jsonl", *_TO, "--limit", "2")
    assert part.returncode == 4, part.stderr
    status = json.loads(batchrun("status", "run", "--json").stdout)
    assert (status["state"], status["left"]) == ("limited", 1)
    assert query("SELECT count(*) FROM read_parquet(?) WHERE status = 'invalid'") == [(1,)]
    assert batchrun("run", "a.jsonl", *_TO).returncode == 0
    assert query("SELECT count(*) FROM read_parquet(?) WHERE ok") == [(4,)]
    _verified(batchrun)


# Columns that are new.


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("parquet", "carry it too"),
        pytest.param("jsonl", "leave it out", marks=pytest.mark.long),
        pytest.param("jsonl", "carry it too", marks=pytest.mark.long),
        pytest.param("parquet", "leave it out", marks=pytest.mark.long),
    ],
)
def test_a_new_column_is_null_for_older_rows_or_left_out(
    tmp_path: Path, write_rows: Any, batchrun: Run, query: Query, kind: str, way: str
) -> None:
    def write(number: int, **more: Any) -> str:
        rows = _night(number, 3, team="x", **more)
        if kind == "jsonl":
            write_rows(rows, f"{number}.jsonl")
        else:
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{number}.parquet")
        return f"{number}.{kind}"

    assert batchrun("run", write(1), *_TO, "--append").returncode == 0
    refused = batchrun("run", write(2, score=7), *_TO, "--append")
    assert refused.returncode == 2
    assert "column `score` is new" in refused.stderr
    (words,) = [
        words
        for words in remedies(refused.stderr)
        if "--carry" in words and ("score" in words) == (way == "carry it too")
    ]
    done = batchrun("run", "2." + kind, *_TO, "--append", *words)
    assert done.returncode == 0, done.stderr
    assert len(_schemas(tmp_path)) == 1
    assert query("SELECT count(*), count(team) FROM read_parquet(?)") == [(6, 6)]
    if way == "leave it out":
        assert "score" not in next(iter(_schemas(tmp_path)))
        return
    assert query(
        "SELECT score, count(*) FROM read_parquet(?) GROUP BY 1 ORDER BY 1 NULLS FIRST"
    ) == [
        (None, 3),
        (7, 3),
    ]
    # From now on it is a column like the others, also of rows that lack it.
    done = batchrun("run", write(3), *_TO, "--append", *words)
    assert done.returncode == 0, done.stderr
    done = batchrun("run", write(4, score=8), *_TO, "--append")
    assert done.returncode == 0, done.stderr
    assert query("SELECT sum(score), count(*) FROM read_parquet(?)") == [(45, 12)]
    _verified(batchrun)


@pytest.mark.long
def test_a_new_column_of_rows_that_are_all_complete_changes_nothing(
    tmp_path: Path, write_rows: Any, batchrun: Run
) -> None:
    write_rows(_night(1), "a.jsonl")
    assert batchrun("run", "a.jsonl", *_TO).returncode == 0
    write_rows(_night(1, score=1), "a.jsonl")
    done = batchrun("run", "a.jsonl", *_TO, "--carry", "id", "--carry", "text", "--carry", "score")
    assert done.returncode == 0, done.stderr
    assert "score" not in next(iter(_schemas(tmp_path)))
    _verified(batchrun)


# What is allowed for each night.


def test_each_command_has_a_cap_of_its_own(
    write_rows: Any, batchrun: Run, query: Query, simulator: Any
) -> None:
    write_rows(_night(1, 60), "a.jsonl")
    url = simulator("--latency", "0.005")
    words = (*_ASK, "-o", "run", "--base-url", url, "--quiet", "--set", "max_output_tokens=100")
    spent = [0.0]
    for _ in range(2):
        done = batchrun("run", "a.jsonl", *words, "--max-cost-per-command", "0.006")
        assert done.returncode == 3, done.stderr
        assert "the budget of this command is used up" in done.stderr
        assert re.search(r"\d+ rows remain", done.stderr)
        (cost,) = query("SELECT sum(cost_usd) FROM read_parquet(?)")[0]
        assert 0.003 < cost - spent[-1] <= 0.006
        spent.append(cost)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("next: batchrun run a.jsonl")
        assert "--max-cost-per-command 0.006" in last  # the same again, with as much again
    both = batchrun(
        *("run", "a.jsonl", *words, "--max-cost-per-command", "5"),
        *("--max-cost", f"{spent[-1] + 0.002:.6f}"),
    )
    assert both.returncode == 3
    assert "raise --max-cost (limits.max_cost_usd)" in both.stderr
    named = shlex.split(both.stderr.splitlines()[-1])
    assert float(named[named.index("--max-cost") + 1]) > spent[-1]
    done = batchrun("run", "a.jsonl", *words, "--max-cost-per-command", "5")
    assert done.returncode in (0, 4), done.stderr


def test_a_cap_of_a_command_needs_prices_and_is_in_the_job_file(
    write_rows: Any, batchrun: Run, write_job: Any
) -> None:
    write_rows(_night(1), "a.jsonl")
    job = (
        "[input]\npath = 'a.jsonl'\n[request]\nmodel = 'house-model'\ninput = '{{ text }}'\n"
        "[limits]\nmax_cost_per_command_usd = 1.0\n"
    )
    refused = batchrun("run", write_job(job), "--simulate", "-o", "run")
    assert refused.returncode == 2
    assert "none is known for house-model" in refused.stderr


def _refused_row(number: int) -> dict[str, Any]:
    """One that the server refuses."""
    return {"id": f"n{number}-bad", "text": "a", "temperature": 9}


def test_rows_that_are_not_ok_are_tolerated_night_by_night(
    write_rows: Any, batchrun: Run, query: Query
) -> None:
    words = (*_TO, "--append", "--send", "temperature", "--carry", "id")
    for number in range(3):
        write_rows([*_night(number, 9), _refused_row(number)], "new.jsonl")
        done = batchrun("run", "new.jsonl", *words, "--tolerate", "1")
        assert done.returncode == 0, done.stderr
        assert "1 of 10 rows is not ok, as --tolerate 1 allows" in done.stderr
        status = json.loads(batchrun("status", "run", "--json").stdout)
        assert (status["state"], status["exit_code"], status["not_ok"]) == (
            *("finished", 0, number + 1),
        )
    assert query("SELECT count(*) FROM read_parquet(?) WHERE NOT ok") == [(3,)]
    # The finished run again: judged anew, by what this command says.
    for option, exit_code in ((("--tolerate", "1"), 0), (("--tolerate", "10%"), 0), ((), 4)):
        again = batchrun("run", "new.jsonl", *words, *option)
        assert again.returncode == exit_code, again.stderr
    for few in ("0", "9.9%"):
        again = batchrun("run", "new.jsonl", *words, "--tolerate", few)
        assert again.returncode == 4
        assert f"1 of 10 rows is not ok, more than --tolerate {few} allows" in again.stderr
    failed = batchrun("run", "new.jsonl", *words, "--tolerate", "0", "--retry-failed")
    assert failed.returncode == 4


def test_a_night_in_two_commands_is_judged_as_one(
    write_rows: Any, batchrun: Run, simulator: Any
) -> None:
    """What a command that was stopped had ended with is not forgotten by the next."""
    rows = [*_night(1, 9), _refused_row(1), *_night(2, 60), _refused_row(2)]
    write_rows(rows, "a.jsonl")
    words = (
        *(*_ASK, "-o", "run", "--base-url", simulator("--latency", "0.01"), "--quiet"),
        *("--send", "temperature", "--set", "max_output_tokens=100", "--concurrency", "1"),
    )
    stopped = batchrun("run", "a.jsonl", *words, "--max-cost-per-command", "0.006")
    assert stopped.returncode == 3
    done = batchrun("run", "a.jsonl", *words, "--tolerate", "1")
    assert done.returncode == 4, done.stderr
    assert "rows are not ok, more than --tolerate 1 allows" in done.stderr


def test_what_is_tolerated_is_a_number_or_a_share(write_rows: Any, batchrun: Run) -> None:
    write_rows(_night(1), "a.jsonl")
    for wrong in ("-1", "some", "101%", "1.5"):
        refused = batchrun("run", "a.jsonl", *_TO, "--tolerate", wrong)
        assert refused.returncode == 2
        assert "it must be a number from 0 up or a share of the rows such as '1%'" in refused.stderr


# When it is time to stop.


def test_at_its_time_nothing_more_is_sent_and_what_is_in_flight_lands(
    write_rows: Any, batchrun: Run, simulator: Any, stats: Any, query: Query
) -> None:
    write_rows(_night(1, 400), "a.jsonl")
    url = simulator("--latency", "0.4")
    words = (*_ASK, "-o", "run", "--base-url", url, "--concurrency", "8", "--quiet")
    done = batchrun("run", "a.jsonl", *words, "--stop-at", "2s")
    assert done.returncode == 3, done.stderr
    assert re.search(r"it is time to stop \(--stop-at 2s\).*; \d+ rows remain", done.stderr)
    stored = query("SELECT count(*) FROM read_parquet(?) WHERE ok")[0][0]
    assert 0 < stored == stats(url)["requests"] < 400
    assert "--stop-at 2s" in done.stderr.splitlines()[-1]
    status = json.loads(batchrun("status", "run", "--json").stdout)
    assert (status["state"], status["exit_code"], status["left"]) == ("stopped", 3, 400 - stored)
    _verified(batchrun)


def test_at_its_time_a_run_says_that_the_endpoint_is_down(write_rows: Any, batchrun: Run) -> None:
    write_rows(_night(1, 30), "a.jsonl")
    url = f"http://127.0.0.1:{free_port()}/v1"
    words = (*_ASK, "-o", "run", "--base-url", url, "--quiet", "--give-up-after", "600")
    done = batchrun("run", "a.jsonl", *words, "--stop-at", "4s")
    assert done.returncode == 3, done.stderr
    assert "it is time to stop (--stop-at 4s)" in done.stderr
    assert "the endpoint was down by then: " in done.stderr
    assert "30 rows remain" in done.stderr


def test_a_run_that_is_done_by_its_time_is_done(write_rows: Any, batchrun: Run) -> None:
    write_rows(_night(1), "a.jsonl")
    for text in ("10h", "9999-01-01 06:30"):
        done = batchrun("run", "a.jsonl", *_TO, "--stop-at", text)
        assert done.returncode == 0, done.stderr


def test_a_time_that_is_past_or_none_is_refused(
    write_rows: Any, batchrun: Run, write_job: Any, tmp_path: Path
) -> None:
    write_rows(_night(1), "a.jsonl")
    job = "[input]\npath = 'a.jsonl'\n[request]\nmodel = 'gpt-4.1'\n[limits]\nstop_at = "
    past = batchrun("run", write_job(job + "2020-01-01T06:30:00\n"), *_TO[:2], *_TO[4:])
    assert past.returncode == 2
    assert "which is past; give a later time, such as --stop-at 06:30" in past.stderr
    given = ("--stop-at", "06:30", *_TO[:2], *_TO[4:])
    assert batchrun("run", "job.toml", *given).returncode == 0
    for wrong in ("25:00", "tomorrow", "90", "2026-13-01 06:30", "0s", "6:3"):
        refused = batchrun("run", "a.jsonl", *_ASK, "-o", "other", "--stop-at", wrong)
        assert refused.returncode == 2, wrong
        assert "write a time of day (06:30)" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_a_time_that_comes_before_anything_is_sent(begin: Any, tmp_path: Path) -> None:
    process = begin("run", "-", *_TO, "--stop-at", "1s", stdin=PIPE)
    said = process.stderr.read()
    assert process.wait(60) == 3
    assert "it is time to stop (--stop-at 1s)" in said
    assert said.splitlines()[-1].startswith("next: ")
    assert not (tmp_path / "run").exists()


def test_a_run_that_judges_another_is_joined_to_it_as_the_page_says(
    tmp_path: Path, write_rows: Any, batchrun: Run
) -> None:
    write_rows([{"id": f"q{at}", "question": f"question {at}"} for at in range(3)], "a.jsonl")
    first = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "--simulate", "--quiet")
    assert batchrun("run", "a.jsonl", *first, "-o", "runs/answers").returncode == 0
    judge, join = (
        shlex.split(line)[1:]
        for line in re.findall(
            r"^(batchrun (?:run|sql) runs/answers .*)$", page("prompt-sets"), re.MULTILINE
        )
    )
    assert batchrun(*judge, "--simulate").returncode == 0
    done = batchrun(*join, "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["custom_id"] for row in sorted(rows, key=str)] == ["q0", "q1", "q2"]
    with duckdb.connect() as connection:
        connection.execute(f"SET file_search_path = '{tmp_path}/runs'")
        sources = connection.execute(
            "SELECT DISTINCT source FROM 'judged/responses/*.parquet'"
        ).fetchall()
    assert {source.split("/")[0] for (source,) in sources} == {"responses"}


@pytest.mark.long
def test_an_input_is_split_by_hand_as_the_page_says(tmp_path: Path, batchrun: Run) -> None:
    rows = [{"id": at, "text": f"text {at}"} for at in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    lines = re.findall(r"^batchrun (run .*half-\d)$", page("prompt-sets"), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        done = batchrun(*shlex.split(line), "--simulate", "--quiet")
        assert done.returncode == 0, done.stderr
    counted = (
        "SELECT count(*) AS n, count(DISTINCT custom_id) AS ids, count(DISTINCT run) AS runs "
        "FROM responses"
    )
    found = batchrun("sql", "runs/half-0", "runs/half-1", counted, "--format", "json")
    assert json.loads(found.stdout) == [{"n": 40, "ids": 40, "runs": 2}]


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        ("in/x/a.jsonl", {"a.jsonl"}),
        pytest.param("in", {"x/a.jsonl", "y/b.jsonl"}, marks=pytest.mark.long),
        ("ABSOLUTE/in", {"x/a.jsonl", "y/b.jsonl"}),
        ("in/*/*.jsonl", {"x/a.jsonl", "y/b.jsonl"}),
    ],
)
def test_the_column_source_is_relative_to_what_was_given(
    tmp_path: Path, write_rows: Any, batchrun: Run, query: Query, given: str, sources: set[str]
) -> None:
    for name, number in (("in/x/a.jsonl", 1), ("in/y/b.jsonl", 2)):
        (tmp_path / name).parent.mkdir(parents=True)
        write_rows(_night(number), name)
    done = batchrun("run", given.replace("ABSOLUTE", str(tmp_path)), *_TO)
    assert done.returncode == 0, done.stderr
    found = query("SELECT DISTINCT source FROM read_parquet(?)")
    assert {source for (source,) in found} == sources
