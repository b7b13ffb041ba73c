"""Scores of runs in a store, and answers from elsewhere that become one: from several machines."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchrun as library
from batchrun.errors import JobError
from tests.remote.object_server import Bucket

Command = Callable[..., subprocess.CompletedProcess[str]]
_RULE = '[[scorers]]\nname = "same"\nkind = "{kind}"\n'
_COLUMNS = ("--id", "id", "--text", "text", "--target", "answer", "--variant", "model")


def answers(*texts: str) -> str:
    """Rows of two models; what is right is the number of the row."""
    return "".join(
        json.dumps({"id": f"q{row}", "text": text, "answer": str(row), "model": model}) + "\n"
        for model in ("a", "b")
        for row, text in enumerate(texts)
    )


@pytest.fixture
def here(s3: dict[str, str], batchrun: Command) -> Callable[..., str]:
    """Runs batchrun, which must say nothing of the folders that runs are read through."""

    def run(*words: str, env: dict[str, str] | None = None, code: int = 0) -> str:
        done = batchrun(*words, env=s3 if env is None else env)
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert not re.search(r"batchrun-\w{8}/run|state/batchrun", said), said
        return said

    return run


@pytest.fixture
def url(bucket: Bucket, here: Callable[..., str]) -> str:
    """A run in the store, of answers that are in the store."""
    bucket.put("in/answers.jsonl", answers("0", "1", "two"))
    made = here(
        *("import", f"{bucket.url}/in/answers.jsonl", *_COLUMNS, "-o", f"{bucket.url}/runs/theirs")
    )
    assert f"{bucket.url}/runs/theirs: 6 answers imported" in made
    return f"{bucket.url}/runs/theirs"


def test_scores_are_in_the_store_and_seen_from_everywhere(
    url: str,
    bucket: Bucket,
    here: Callable[..., str],
    s3: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    rule = tmp_path / "rule.toml"
    rule.write_text(_RULE.format(kind="exact"))
    for command in ("metrics", "compare"):
        assert f"batchrun score {url}" in here(command, url, code=2)
    said = here("score", url, "rule.toml")
    assert "same: 6 of 6 scored, mean 0.6667, 4 passed" in said
    assert f"{url}/scores/same/scores.parquet" in said
    assert "scores/same/scores.parquet" in "".join(bucket.names("runs/theirs/scores"))
    before = bucket.get("runs/theirs/scores/same/scores.parquet")
    assert "0 scored now; 6 unchanged" in here("score", url, "rule.toml", env=other)
    assert bucket.get("runs/theirs/scores/same/scores.parquet") == before
    table = json.loads(here("metrics", url, "--format", "json", env=other))
    assert [(one["run"], one["mean"]) for one in table["lines"]] == [(url, 2 / 3)] * 2
    assert "0.0" in here("compare", url, env=other)
    sql = "SELECT run, scorer, count(*), sum(value) FROM scores GROUP BY ALL"
    assert f"{url},same,6,4" in here("sql", url, sql, "--format", "csv", env=other).replace('"', "")
    assert "same" in here("show", url, "q2", env=other)
    here("verify", url, env=other)
    for name, value in other.items():
        monkeypatch.setenv(name, value)
    assert [one.mean for one in library.metrics(url).lines] == [2 / 3] * 2
    with pytest.raises(JobError, match=f"given more than once: {url};"):
        library.metrics(url, url)
    rule.write_text(_RULE.format(kind="includes"))
    assert "6 scored now" in here("score", url, "rule.toml", env=other)
    assert bucket.get("runs/theirs/scores/same/scores.parquet") != before


def test_scores_are_of_the_answers_that_this_machine_still_has(
    bucket: Bucket,
    here: Callable[..., str],
    s3: dict[str, str],
    batchrun: Command,
    tmp_path: Path,
) -> None:
    """The folder that a run is written from shows what another machine has scored since."""
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "input": "1?", "target": "1"}\n')
    url, other = f"{bucket.url}/run", {**s3, "XDG_STATE_HOME": str(tmp_path / "other")}
    words = ("prompts.jsonl", "--model", "m", "--simulate", "--carry", "target", "-o", url)
    assert batchrun("run", *words, env=s3).returncode == 0
    (tmp_path / "rule.toml").write_text(_RULE.format(kind="exact"))
    here("score", url, "rule.toml", env=other)
    assert "1 of 1" in here("score", url, "rule.toml")
    assert "0 scored now; 1 unchanged" in here("score", url, "rule.toml")
    bucket.delete("run/scores/same/scores.parquet")
    assert "nothing is scored yet" in here("metrics", url, code=2)


def test_an_import_into_a_store_is_there_whole_or_is_no_run(
    url: str,
    bucket: Bucket,
    here: Callable[..., str],
    killed_at: Callable[..., bool],
    tmp_path: Path,
) -> None:
    (tmp_path / "answers.jsonl").write_text(answers("0", "1"))
    words = ("import", "answers.jsonl", *_COLUMNS, "-o")
    assert "exists already" in here(*words, url, code=2)
    assert killed_at(1, "before", *words, f"{bucket.url}/runs/half", counts="/run.json")
    for claim in bucket.names("runs/half/claims/"):
        bucket.delete(claim)  # as if a minute had passed
    assert bucket.names("runs/half/responses/")
    assert bucket.get("runs/half/run.json") is None
    assert "is not a run in a store" in here("status", f"{bucket.url}/runs/half", code=2)
    again = here(*words, f"{bucket.url}/runs/half", code=2)
    assert "delete it: an import that was killed leaves such objects" in again
    for key in bucket.names("runs/half/"):
        bucket.delete(key)
    here(*words, f"{bucket.url}/runs/half")
    assert json.loads(bucket.get("runs/half/run.json") or b"")["store"] == f"{bucket.url}/runs/half"
    assert len(list((tmp_path / "state/batchrun").iterdir())) == 1  # what the kill has left
    assert "is neither" in here(*words, "ftp://somewhere/run", code=2)


def test_a_run_in_a_store_is_imported_as_any_table(
    url: str, here: Callable[..., str], tmp_path: Path
) -> None:
    columns = ("--id", "custom_id", "--text", "output_text", "--variant", "variant")
    assert "6 answers imported" in here("import", url, *columns, "-o", "copy")
    table = pq.read_table(tmp_path / "copy/responses")
    assert isinstance(table, pa.Table)
    assert sorted(table["custom_id"].to_pylist()) == sorted(["q0", "q1", "q2"] * 2)
    assert json.loads((tmp_path / "copy/run.json").read_bytes())["source_path"] == url
