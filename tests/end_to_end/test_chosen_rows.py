"""`--where` and `--sample-rows`: which rows are sent, and what the commands after them send."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.runs import read_record

Batchrun = Callable[..., subprocess.CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]
ASK = ("--model", "m", "--simulate", "-o", "run")


@pytest.fixture(params=["jsonl", "parquet", "both"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """60 rows with numbers, text, structs and lists, as lines, as Parquet, or half and half."""
    rows = [
        {
            "prompt": f"question {at}",
            "level": at % 5,
            "lang": "de" if at % 2 else "en",
            "meta": {"author": f"a{at % 3}"},
            "tags": ["x", "y"][: at % 3],
            "day": f"2026-01-{at % 28 + 1:02}",
        }
        for at in range(60)
    ]
    folder = tmp_path / "rows"
    folder.mkdir()
    half = {"jsonl": 60, "parquet": 0, "both": 30}[request.param]
    if half:
        lines = "".join(json.dumps(row) + "\n" for row in rows[:half])
        (folder / "a.jsonl").write_text(lines)
    if half < 60:
        pq.write_table(pa.Table.from_pylist(rows[half:]), folder / "b.parquet", row_group_size=7)
    return "rows"


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        ("level >= 3", lambda at: at % 5 >= 3),
        ("lang = 'de' AND level = 0", lambda at: at % 2 and at % 5 == 0),
        ("meta.author = 'a1'", lambda at: at % 3 == 1),
        ("list_contains(tags, 'y')", lambda at: at % 3 == 2),
        ("day::DATE > DATE '2026-01-20'", lambda at: at % 28 >= 20),
        ("Prompt LIKE '%question 1%' -- a comment", lambda at: str(at).startswith("1")),
        ("true", lambda _at: True),
    ],
)
def test_only_rows_are_sent_for_which_the_expression_holds(
    batchrun: Batchrun, query: Query, source: str, where: str, fits: Callable[[int], bool]
) -> None:
    done = batchrun("run", source, *ASK, "--where", where)
    assert done.returncode == 0, done.stderr
    expected = [at for at in range(60) if fits(at)]
    assert [row for (row,) in query("SELECT row FROM read_parquet(?) ORDER BY row")] == expected


def test_commands_with_and_without_go_on_where_the_others_were(
    batchrun: Batchrun, query: Query, source: str, tmp_path: Path
) -> None:
    def rows() -> int:
        return len(query("SELECT row FROM read_parquet(?)"))

    done = batchrun("run", source, *ASK, "--where", "level = 1", "--limit", 5)
    assert rows() == 5, done.stderr
    assert "where and limit: 5 of 60 rows done" in done.stderr
    assert max(query("SELECT row FROM read_parquet(?)")) == (21,)
    done = batchrun("run", source, *ASK, "--where", "level = 1")
    assert rows() == 12, done.stderr
    assert read_record(tmp_path / "run")["state"] == "limited"
    again = batchrun("run", source, *ASK, "--where", "level = 1")
    assert (again.returncode, rows()) == (0, 12)
    assert "nothing left to send" in again.stderr
    assert batchrun("run", source, *ASK, "--where", "level <= 1").returncode == 0
    assert rows() == 24
    assert batchrun("run", source, *ASK).returncode == 0
    assert rows() == 60
    assert read_record(tmp_path / "run")["state"] == "finished"
    assert query("SELECT count(DISTINCT row) FROM read_parquet(?)") == [(60,)]


def test_rows_that_are_left_out_may_be_bad(
    batchrun: Batchrun, query: Query, tmp_path: Path
) -> None:
    lines = ['{"text": "a", "n": 1}', '{"text": null, "n": 2}', '{"n": 3}', '{"text": "d"}']
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    ask = ("some.jsonl", "--prompt", "{{ text }}", *ASK)
    assert batchrun("run", *ask).returncode == 2
    done = batchrun("run", *ask, "--where", "text IS NOT NULL")
    assert done.returncode == 0, done.stderr
    assert query("SELECT row FROM read_parquet(?) ORDER BY row") == [(0,), (3,)]
    (tmp_path / "some.jsonl").write_text("\n".join([*lines, "no JSON"]))
    done = batchrun("run", *ask, "--where", "text IS NOT NULL")
    assert done.returncode == 2
    assert "1 row of 5 cannot be sent" in done.stderr  # nobody can say whether it fits
    pq.write_table(pa.table({"quest": ["a"]}), tmp_path / "lacks.parquet")
    done = batchrun(
        "run", "lacks.parquet", "--prompt", "{{ question }}", *ASK[:-1], "new", "--where", "1 = 1"
    )
    assert "1 row of 1 cannot be sent" in done.stderr


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("level >", "is not a condition in SQL: syntax error"),
        ("true; SELECT 1", "is not a condition in SQL: syntax error"),
        ("true) UNION (SELECT 1", "is not a condition in SQL: more than one"),
        ("levl > 3", "`levl`"),
        ("level > 99", "fits none of 60 rows"),
        ("lang + 'x' > 3", "--where (where in [input]): "),
        ("no_such_function(level)", "no_such_function"),
    ],
)
def test_an_expression_that_cannot_be_is_refused(
    batchrun: Batchrun, source: str, tmp_path: Path, where: str, said: str
) -> None:
    for command in ("run", "estimate"):
        done = batchrun(command, source, *ASK, "--where", where)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        if where == "levl > 3":
            assert "did you mean `level`?" in done.stderr
    assert not (tmp_path / "run").exists()


def test_failed_rows_that_are_left_out_stay_as_they_are(
    batchrun: Batchrun, query: Query, simulator: Callable[..., str], tmp_path: Path
) -> None:
    rows = [{"prompt": f"question {at}", "level": at % 2} for at in range(20)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = ("some.jsonl", "--model", "m", "-o", "run", "--api-key-env", "none", "--base-url")
    batchrun("run", *ask, simulator("--fault", "400_policy=0.6", "--seed", 3))
    failed = query("SELECT level, count(*) FROM read_parquet(?) WHERE NOT ok GROUP BY 1 ORDER BY 1")
    assert len(failed) == 2
    done = batchrun("run", *ask, simulator(), "--where", "level = 1", "--retry-failed")
    left = query("SELECT level, count(*) FROM read_parquet(?) WHERE NOT ok GROUP BY 1")
    assert left == failed[:1], done.stderr
    assert query("SELECT count(*), count(DISTINCT row) FROM read_parquet(?)") == [(20, 20)]
    assert read_record(tmp_path / "run")["totals"]["rows"] == 20


def test_hive_columns_and_columns_of_other_files_can_be_asked_for(
    batchrun: Batchrun, query: Query, tmp_path: Path
) -> None:
    for lang in ("de", "fr"):
        folder = tmp_path / "hive" / f"lang={lang}" / "year=2024"
        folder.mkdir(parents=True)
        more = {"extra": [1, 2]} if lang == "fr" else {}
        pq.write_table(pa.table({"prompt": ["a", "b"], **more}), folder / "part.parquet")
    done = batchrun("run", "hive", *ASK, "--where", "lang = 'fr' AND year > 2000 AND extra = 2")
    assert done.returncode == 0, done.stderr
    assert query("SELECT row FROM read_parquet(?)") == [(3,)]


def test_where_of_a_job_file(batchrun: Batchrun, query: Query, source: str, tmp_path: Path) -> None:
    text = f"[input]\npath = '{source}'\nwhere = 'level = 4'\n[request]\nmodel = 'm'\n"
    (tmp_path / "job.toml").write_text(text)
    assert batchrun("run", "job.toml", "--simulate", "-o", "run").returncode == 0
    assert query("SELECT count(*) FROM read_parquet(?)") == [(12,)]


def test_a_sample_is_random_and_the_same_each_time(
    batchrun: Batchrun, query: Query, source: str, tmp_path: Path
) -> None:
    def rows(run: str = "run") -> set[int]:
        return {row for (row,) in query("SELECT row FROM read_parquet(?)", run)}

    done = batchrun("run", source, *ASK, "--sample-rows", 10)
    assert done.returncode == 0, done.stderr
    assert "sample: 10 of 60 rows done" in done.stderr
    assert "--sample-rows" not in done.stderr.partition("next: ")[2]
    first = rows()
    assert len(first) == 10
    assert first != set(range(10))
    batchrun("run", source, *ASK[:-1], "other", "--sample-rows", 10)
    assert rows("other") == first
    assert "nothing left to send" in batchrun("run", source, *ASK, "--sample-rows", 10).stderr
    assert "nothing left to send" in batchrun("run", source, *ASK, "--sample-rows", 4).stderr
    batchrun("run", source, *ASK, "--sample-rows", 25)
    assert len(rows()) == 25
    assert first < rows()
    done = batchrun("run", source, *ASK, "--sample-rows", 100)
    assert len(rows()) == 60
    assert read_record(tmp_path / "run")["state"] == "finished"


def test_a_sample_of_chosen_rows_and_its_pinned_rows_outlive_a_stop(
    batchrun: Batchrun, query: Query, source: str, tmp_path: Path
) -> None:
    ask = ("run", source, *ASK, "--where", "level < 2", "--sample-rows", 8)
    batchrun(*ask, "--limit", 3)
    pinned = read_record(tmp_path / "run")["sampled"]["rows"]
    assert len(pinned) == 8
    assert all(row % 5 < 2 for row in pinned)
    three = query("SELECT row FROM read_parquet(?) ORDER BY row")
    assert three == [(row,) for row in sorted(pinned)[:3]]
    assert batchrun(*ask).returncode == 0
    assert query("SELECT row FROM read_parquet(?) ORDER BY row") == [(r,) for r in sorted(pinned)]


def test_estimate_counts_chosen_rows_alone(batchrun: Batchrun, source: str) -> None:
    for chosen, rows in ((("--where", "level = 4"), 12), (("--sample-rows", 7), 7)):
        done = batchrun("estimate", source, "--model", "m", "--json", *chosen)
        assert json.loads(done.stdout)["to_send"] == rows, done.stderr
        done = batchrun("run", source, *ASK, "--dry-run", *chosen)
        assert f"{rows} to send" in done.stderr
