import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchrun as library
from batchrun.dialects.responses import parse_response
from batchrun.records import Attempt, Layout, Outcome, Request, Response
from batchrun.store.run_dir import RunDir
from tests.processes import COMMAND, run_batchrun
from tests.runs import column, read_record, run_record
from tests.waiting import wait_until

RELEASED = Path(__file__).parents[1] / "released" / "schema_1"
Command = Callable[..., subprocess.CompletedProcess[str]]
Rows = Sequence[Mapping[str, object]]

_ROWS = [
    {"id": "a", "text": "I think Paris", "answer": "Paris", "split": "x"},
    {"id": "b", "text": "Answer: 1,234", "answer": "1234", "split": "x"},
    {"id": "c", "text": "It is 25.", "answer": "5", "split": "y"},
    {"id": "d", "text": "5", "answer": "5", "split": "y"},
]
_COLUMNS = {
    "row": "int64",
    "custom_id": "string",
    "sample": "int32",
    "variant": "string",
    "scorer": "string",
    "scorer_version": "string",
    "metric": "string",
    "value": "double",
    "passed": "bool",
    "answer": "string",
    "target": "string",
    "reason": "string",
    "explanation": "string",
    "metadata": "string",
    "input_hash": "string",
    "response_id": "string",
    "judge_response_id": "string",
    "judge_cost_usd": "double",
    "scored_at": "timestamp[us, tz=UTC]",
}


_MANY = "input = \"{{ output_text }}{{ 'a' * 60 }}\"\ntimeout_s = 0.3"


def write_rows(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_scorers(folder: Path, *scorers: str) -> None:
    """Each is the text of one table."""
    text = "".join(f"[[scorers]]\n{one}\n" for one in scorers)
    (folder / "scorers.toml").write_text(text, encoding="utf-8")


@pytest.fixture(name="run")
def imported(tmp_path: Path, batchrun: Command) -> Path:
    write_rows(tmp_path / "answers.jsonl", _ROWS)
    made = batchrun(
        *("import", "answers.jsonl", "--id", "id", "--text", "text", "--target", "answer"),
        *("--carry", "split", "-o", "run"),
    )
    assert made.returncode == 0, made.stderr
    return tmp_path / "run"


def scores(run: Path, name: str) -> dict[str, dict[str, Any]]:
    """By custom_id, of a scorer with one metric."""
    rows = pq.read_table(run / "scores" / name / "scores.parquet").to_pylist()
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def values(run: Path, name: str) -> dict[str, float | None]:
    return {key: row["value"] for key, row in sorted(scores(run, name).items())}


def test_scores_are_a_row_for_each_answer(run: Path, tmp_path: Path, batchrun: Command) -> None:
    write_scorers(
        tmp_path,
        'kind = "exact"',
        'kind = "number"',
        'kind = "includes"',
        'name = "found"\nkind = "regex"\npattern = "Answer: (.*)"',
        'name = "spelt"\nkind = "exact"\ninput = "{{ output_text | upper }}!"\ntarget = "5!"',
    )
    # A target that is no column and no template is a mistake.
    wrong = batchrun("score", "run", "scorers.toml")
    assert wrong.returncode == 2
    assert "target names the column `5!`" in wrong.stderr
    assert not list((run / "scores").rglob("*.parquet"))

    text = (tmp_path / "scorers.toml").read_text().replace('"5!"', '"{{ target | upper }}!"')
    (tmp_path / "scorers.toml").write_text(text)
    wrong = batchrun("score", "run", "scorers.toml", "--scorer", "number")
    assert wrong.returncode == 2
    assert 'the target has no number: "Paris"' in wrong.stderr

    done = batchrun("score", "run", "scorers.toml", "--scorer", "exact", "--scorer", "includes")
    assert done.returncode == 0, done.stderr
    assert "exact: 4 of 4 scored, mean 0.25, 1 passed" in done.stdout
    assert values(run, "exact") == {"a": 0, "b": 0, "c": 0, "d": 1}
    assert values(run, "includes") == {"a": 1, "b": 0, "c": 0, "d": 1}
    done = batchrun("score", "run", "scorers.toml", "--scorer", "found", "--scorer", "spelt")
    assert done.returncode == 0, done.stderr
    assert values(run, "found") == {"a": 0, "b": 0, "c": 0, "d": 0}
    assert scores(run, "found")["b"]["answer"] == "1,234"
    assert scores(run, "found")["a"]["reason"] == "no_match"
    assert values(run, "spelt") == {"a": 0, "b": 0, "c": 0, "d": 1}

    table = pq.read_table(run / "scores" / "exact" / "scores.parquet")
    assert {field.name: str(field.type) for field in table.schema} == _COLUMNS
    row = scores(run, "exact")["d"]
    assert (row["value"], row["passed"], row["answer"], row["target"]) == (1, True, "5", "5")
    assert (row["metric"], row["scorer"], row["reason"]) == ("value", "exact", None)
    assert len(row["scorer_version"]) == len(row["input_hash"]) == 16
    verified = batchrun("verify", "run")
    assert verified.returncode == 0, verified.stdout
    shown = batchrun("show", "run", "c").stdout
    assert "  exact 0: not passed; different; answer It is 25.; target 5\n" in shown
    assert "  includes 0: not passed; not_included; target 5\n" in shown
    as_json = json.loads(batchrun("show", "run", "d", "--json").stdout)
    assert [one["scorer"] for one in as_json["scores"]] == ["exact", "found", "includes", "spelt"]


def test_verify_finds_scores_that_are_damaged(run: Path, tmp_path: Path, batchrun: Command) -> None:
    write_scorers(tmp_path, 'kind = "exact"')
    assert batchrun("score", "run", "scorers.toml").returncode == 0
    assert batchrun("verify", "run").returncode == 0
    file = run / "scores" / "exact" / "scores.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    verified = batchrun("verify", "run")
    assert verified.returncode == 1
    assert "scores/exact/scores.parquet: it cannot be read" in verified.stdout + verified.stderr
    assert batchrun("score", "run", "scorers.toml", "--again").returncode == 0
    assert batchrun("verify", "run").returncode == 0


def test_a_carried_number_is_scored_against_a_constant(tmp_path: Path, batchrun: Command) -> None:
    rows = [{"id": at, "out": "x", "reward": at / 2} for at in range(3)]
    write_rows(tmp_path / "answers.jsonl", rows)
    made = batchrun(
        *(
            "import",
            "answers.jsonl",
            "--id",
            "id",
            "--text",
            "out",
            "--carry",
            "reward",
            "-o",
            "run",
        )
    )
    assert made.returncode == 0, made.stderr
    text = 'kind = "number"\ninput = "{{ reward }}"\ntarget = "{{ 1 }}"'
    write_scorers(tmp_path, text)
    assert batchrun("score", "run", "scorers.toml").returncode == 0
    assert values(tmp_path / "run", "number") == {"0": 0, "1": 0, "2": 1}


@pytest.mark.usefixtures("run")
def test_scores_are_a_table_for_sql(tmp_path: Path, batchrun: Command) -> None:
    query = "SELECT run, scorer, sum(value) AS n FROM scores GROUP BY ALL ORDER BY ALL"
    assert json.loads(batchrun("sql", "run", query, "--format", "json").stdout) == []
    write_scorers(tmp_path, 'kind = "exact"', 'kind = "includes"')
    assert batchrun("score", "run", "scorers.toml").returncode == 0
    found = json.loads(batchrun("sql", "run", query, "--format", "json").stdout)
    assert found == [
        {"run": "run", "scorer": "exact", "n": 1.0},
        {"run": "run", "scorer": "includes", "n": 2.0},
    ]
    joined = "SELECT count(*) AS n FROM scores JOIN responses USING (run, custom_id, sample)"
    assert json.loads(batchrun("sql", "run", joined, "--format", "json").stdout) == [{"n": 8}]


def test_only_what_changed_is_scored_again(run: Path, tmp_path: Path, batchrun: Command) -> None:
    calls = tmp_path / "calls.txt"
    code = f"""
def score(row):
    with open({str(calls)!r}, "a") as file:
        file.write(row["custom_id"])
    return len(row["output_text"])
"""
    (tmp_path / "own.py").write_text(code)
    targets = [{"id": row["id"], "label": row["answer"]} for row in _ROWS]
    write_rows(tmp_path / "labels.jsonl", targets)
    of_file = 'targets = { file = "labels.jsonl", column = "label" }'
    write_scorers(
        tmp_path,
        'name = "own"\nkind = "python"\nfunction = "own.py:score"\nthreshold = 5',
        f'kind = "exact"\n{of_file}',
    )

    def score(*options: str) -> str:
        calls.write_text("")
        done = batchrun("score", "run", "scorers.toml", *options)
        assert done.returncode == 0, done.stderr
        return "".join(sorted(calls.read_text()))

    assert score() == "abcd"
    assert scores(run, "own")["d"]["passed"] is False
    before = {name: scores(run, name) for name in ("own", "exact")}
    stats = (run / "scores" / "own" / "scores.parquet").stat()

    assert score() == ""
    assert (run / "scores" / "own" / "scores.parquet").stat() == stats
    assert score("--again") == "abcd"
    assert scores(run, "own")["a"]["scored_at"] > before["own"]["a"]["scored_at"]

    # A corrected label: one row.
    before["exact"] = scores(run, "exact")
    targets[0]["label"] = "I think Paris"
    write_rows(tmp_path / "labels.jsonl", targets)
    done = batchrun("score", "run", "scorers.toml", "--scorer", "exact")
    assert "1 scored now; 3 unchanged" in done.stdout
    after = scores(run, "exact")
    assert values(run, "exact") == {"a": 1, "b": 0, "c": 0, "d": 1}
    assert {key for key in after if after[key] != before["exact"][key]} == {"a"}

    # Another rule: the function's file, an option.
    (tmp_path / "own.py").write_text(code + "\n# changed\n")
    assert score() == "abcd"
    version = scores(run, "own")["a"]["scorer_version"]
    assert version != before["own"]["a"]["scorer_version"]
    text = (tmp_path / "scorers.toml").read_text().replace("threshold = 5", "threshold = 1")
    (tmp_path / "scorers.toml").write_text(text)
    assert score() == "abcd"
    assert scores(run, "own")["d"]["passed"] is True


def test_a_file_may_hold_the_corrected_labels_alone(
    run: Path, tmp_path: Path, batchrun: Command
) -> None:
    write_scorers(tmp_path, 'kind = "exact"\ntarget = "target"')
    assert batchrun("score", "run", "scorers.toml").returncode == 0
    before = scores(run, "exact")
    write_scorers(
        tmp_path,
        'kind = "exact"\ntarget = "target"\ntargets = { file = "labels.jsonl", column = "right" }',
    )
    labels = [{"id": "a", "right": "I think Paris"}, {"id": "z", "right": "x"}]
    write_rows(tmp_path / "labels.jsonl", labels)
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0, done.stderr
    assert ('labels.jsonl (1 id has no answer: z), all others from target = "target"') in " ".join(
        done.stdout.split()
    )
    assert "1 scored now; 3 unchanged" in done.stdout
    after = scores(run, "exact")
    assert {key for key in after if after[key] != before[key]} == {"a"}
    assert (before["a"]["value"], after["a"]["value"]) == (0, 1)
    # Where targets come from is no part of the rule.
    assert after["a"]["scorer_version"] == before["b"]["scorer_version"]


def test_what_a_function_may_return(run: Path, tmp_path: Path, batchrun: Command) -> None:
    (tmp_path / "own.py").write_text("""
import os, time

def score(row):
    name = row["custom_id"]
    if name == "a":
        return True
    if name == "b":
        return {"value": 0.5, "answer": 7, "reason": "half", "metadata": {"why": ["x"]}}
    return None if name == "c" else 3

def several(row):
    print("on standard output")
    if row["custom_id"] == "d":
        return None
    return {"value": {"length": len(row["output_text"]), "right": False}}

def fails(row):
    if row["custom_id"] == "a":
        raise ValueError("no \\ud800 good")
    if row["custom_id"] == "b":
        os._exit(3)
    if row["custom_id"] == "c":
        while True:
            pass
    return {"value": 1, "metadta": 2} if row["split"] == "z" else float("nan")

def of_samples(rows):
    return [len(rows)] * len(rows)
""")
    for name in ("score", "several", "fails"):
        kind = f'kind = "python"\nfunction = "own.py:{name}"\ntimeout_s = 0.5'
        write_scorers(tmp_path, f'name = "{name}"\n{kind}')
        done = batchrun("score", "run", "scorers.toml")
        assert done.returncode == (4 if name == "fails" else 0), done.stderr
        if name == "score":
            assert "3 of 4 scored, mean 1.5, 2 passed" in done.stdout
        if name == "several":
            assert "on standard output" not in done.stdout
            assert "several/length: 3 of 4 scored" in done.stdout
            assert (
                "several/right: 3 of 4 scored, mean 0, 0 passed; the mean is between 0 and 0.25"
                in done.stdout
            )
    assert values(run, "score") == {"a": 1, "b": 0.5, "c": None, "d": 3}
    half = scores(run, "score")["b"]
    assert (half["answer"], half["reason"], half["metadata"]) == ("7", "half", '{"why":["x"]}')
    rows = pq.read_table(run / "scores" / "several" / "scores.parquet").to_pylist()
    assert len(rows) == 8
    assert {(row["metric"], row["value"]) for row in rows if row["custom_id"] == "d"} == {
        ("length", None),
        ("right", None),
    }
    found = scores(run, "fails")
    assert {row["reason"] for row in found.values()} == {"scorer_error"}
    assert {row["value"] for row in found.values()} == {None}
    assert found["a"]["explanation"].startswith("ValueError: no \N{REPLACEMENT CHARACTER} good")
    assert "own.py, line" in found["a"]["explanation"]
    assert "exit code 3" in found["b"]["explanation"]
    assert "longer than 0.5 s" in found["c"]["explanation"]
    assert "nan" in found["d"]["explanation"]


def test_rows_that_a_scorer_failed_are_scored_again(
    run: Path, tmp_path: Path, batchrun: Command
) -> None:
    (tmp_path / "own.py").write_text("""
import pathlib
def score(row):
    if row["custom_id"] < "c" and not pathlib.Path("there").exists():
        raise RuntimeError("not there")
    return 1
""")
    write_scorers(tmp_path, 'name = "own"\nkind = "python"\nfunction = "own.py:score"')
    failed = batchrun("score", "run", "scorers.toml")
    assert failed.returncode == 4
    assert (
        "2 of 4 scored, mean 1, 2 passed; the mean is between 0.5 and 1 if the rest"
        in failed.stdout
    )
    assert "the scorer failed for 2" in failed.stdout
    (tmp_path / "there").touch()
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0
    assert "2 scored now; 2 unchanged" in done.stdout
    assert values(run, "own") == dict.fromkeys("abcd", 1)


def test_a_function_gets_all_samples_or_variants_of_a_prompt(
    tmp_path: Path, batchrun: Command
) -> None:
    rows = [
        {"id": name, "text": f"{name}{sample}", "n": sample, "model": model}
        for sample in (1, 0)
        for name in "xyz"
        for model in ("m2", "m1")
    ]
    write_rows(tmp_path / "answers.jsonl", rows)
    imported = batchrun(
        *("import", "answers.jsonl", "--id", "id", "--text", "text"),
        *("--sample", "n", "--variant", "model", "-o", "run"),
    )
    assert imported.returncode == 0, imported.stderr
    (tmp_path / "own.py").write_text("""
def samples(rows):
    assert len({(row["custom_id"], row["variant"]) for row in rows}) == 1
    assert [row["sample"] for row in rows] == [0, 1]
    return [row["sample"] for row in rows]

def variants(rows):
    assert [row["variant"] for row in rows] == ["m1", "m2"]
    assert len({(row["custom_id"], row["sample"]) for row in rows}) == 1
    if rows[0]["custom_id"] == "z":
        raise ValueError("z")
    return 0.5
""")
    write_scorers(
        tmp_path,
        'name = "s"\nkind = "python"\nfunction = "own.py:samples"\nrows = "samples"',
        'name = "v"\nkind = "python"\nfunction = "own.py:variants"\nrows = "variants"',
    )
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 4, done.stderr
    for scorer, wanted in (("s", "value = sample"), ("v", "(value = 0.5) OR custom_id = 'z'")):
        file = tmp_path / "run" / "scores" / scorer / "scores.parquet"
        found = duckdb.read_parquet(str(file)).aggregate(f"count(*), bool_and({wanted})")
        assert found.fetchall() == [(12, True)]
    again = batchrun("score", "run", "scorers.toml")
    assert "0 scored now; 12 unchanged" in again.stdout
    assert "4 scored now, but the scorer failed for 4; 8 unchanged" in again.stdout


def test_answers_count_as_they_stand_and_rows_without_one_have_no_score(
    tmp_path: Path, batchrun: Command
) -> None:
    def line(name: str, **said: object) -> dict[str, object]:
        return {"custom_id": name, "response": None, "error": None, **said}

    def answer(name: str, body: object, status: int = 200) -> dict[str, object]:
        return line(name, response={"status_code": status, "request_id": "r", "body": body})

    def body(text: str, **more: object) -> dict[str, object]:
        part = {"type": "output_text", "text": text}
        item = {"type": "message", "role": "assistant", "content": [part]}
        return {
            "object": "response",
            "id": "resp_1",
            "status": "completed",
            "output": [item],
            **more,
        }

    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "I cannot say"}]}
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    chat = {
        "object": "chat.completion",
        "id": "chatcmpl-1",
        "choices": [{"finish_reason": "stop", "message": {"content": "yes"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    policy = {"error": {"message": "not allowed", "code": "content_policy_violation"}}
    rows = [
        answer("right", body("yes")),
        answer("chat", chat),
        answer("wrong", body("no")),
        answer("blank", body(" ")),
        answer("refused", body("", output=[refusal])),
        answer("cut", body("yes", **cut)),
        answer("policy", policy, 400),
        line("gone", error={"code": "batch_expired", "message": "not in time"}),
    ]
    write_rows(tmp_path / "results.jsonl", rows)
    imported = batchrun("import", "results.jsonl", "-o", "run")
    assert imported.returncode == 0, imported.stderr
    assert batchrun("verify", "run").returncode == 0
    (tmp_path / "own.py").write_text("def score(row): return row['status'] != 'failed'")
    write_rows(
        tmp_path / "labels.jsonl", [{"id": row["custom_id"], "answer": "yes"} for row in rows]
    )
    write_scorers(tmp_path, 'kind = "exact"\ntargets = { file = "labels.jsonl" }')
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0, done.stderr
    # Failed rows are not left out without a word: 3 of 6 is not 3 of 8.
    assert (
        "exact: 6 of 8 scored, mean 0.5, 3 passed; "
        "the mean is between 0.375 and 0.625 if the rest were all wrong or all right"
    ) in done.stdout
    assert values(tmp_path / "run", "exact") == {
        "blank": 0,
        "chat": 1,
        "cut": 1,
        "gone": None,
        "policy": None,
        "refused": 0,
        "right": 1,
        "wrong": 0,
    }
    policy_row = scores(tmp_path / "run", "exact")["policy"]
    assert (policy_row["reason"], policy_row["explanation"]) == ("failed", "content_policy")
    assert policy_row["passed"] is None
    report = batchrun("score", "run", "scorers.toml", "--json")
    (said,) = json.loads(report.stdout)
    assert said["metrics"]["value"]["between"] == [0.375, 0.625]
    assert said["scored_now"] == 0


def test_the_scorers_of_the_job_are_read_again(tmp_path: Path, batchrun: Command) -> None:
    write_rows(tmp_path / "q.jsonl", [{"id": "a", "q": "2+2", "answer": "4"}])
    job = tmp_path / "jobs" / "job.toml"
    job.parent.mkdir()
    (job.parent / "own.py").write_text("def score(row): return 1")
    text = """
[input]
path = "../q.jsonl"
[request]
model = "gpt-6-luna"
input = "{{ q }}"
"""
    job.write_text(text)
    ran = batchrun("run", "jobs/job.toml", "--simulate", "-o", "run")
    assert ran.returncode == 0, ran.stderr
    none = batchrun("score", "run")
    assert none.returncode == 2
    assert "it has no [[scorers]]" in none.stderr
    job.write_text(text + '[[scorers]]\nkind = "python"\nfunction = "own.py:score"\n')
    done = batchrun("score", "run")
    assert done.returncode == 0, done.stderr
    assert values(tmp_path / "run", "python") == {"a": 1}
    # What the run remembers serves where the file is gone, from any folder.
    assert batchrun("run", "jobs/job.toml", "--simulate", "-o", "run").returncode == 0
    job.unlink()
    assert "0 scored now; 1 unchanged" in batchrun("score", "run").stdout


def test_a_run_that_goes_on_is_scored_as_far_as_it_is(tmp_path: Path, batchrun: Command) -> None:
    rows = [{"id": str(at), "q": f"{at}?", "answer": "x"} for at in range(5)]
    write_rows(tmp_path / "q.jsonl", rows)
    asked = ("run", "q.jsonl", "--prompt", "{{ q }}", "--model", "m", "--simulate", "-o", "run")
    assert batchrun(*asked, "--limit", "2").returncode == 0
    write_scorers(tmp_path, 'kind = "exact"')
    said = batchrun("score", "run", "scorers.toml").stdout
    assert "exact: 2 of 2 scored" in said
    assert "note: 3 of 5 rows were not asked for: these are the rows that are complete" in said
    assert batchrun(*asked).returncode == 0
    said = batchrun("score", "run", "scorers.toml").stdout
    assert "3 scored now; 2 unchanged" in said
    assert "note:" not in said
    assert len(scores(tmp_path / "run", "exact")) == 5
    assert batchrun("verify", "run").returncode == 0


def test_tool_calls_are_scored_by_what_the_answer_holds(tmp_path: Path, batchrun: Command) -> None:
    def call(name: str, **arguments: object) -> dict[str, object]:
        return {"type": "function_call", "name": name, "arguments": json.dumps(arguments)}

    outputs = {
        "right": [call("b", y=2), call("a", x=1)],
        "wrong": [call("a", x=1), call("b", y=3)],
        "none": [],
    }
    rows = [
        {
            "custom_id": name,
            "response": {"status_code": 200, "body": {"object": "response", "output": output}},
        }
        for name, output in outputs.items()
    ]
    write_rows(tmp_path / "results.jsonl", rows)
    assert batchrun("import", "results.jsonl", "-o", "run").returncode == 0
    expected = [{"a": {"x": [1]}}, {"b": {"y": [2, ""]}}]
    write_rows(tmp_path / "labels.jsonl", [{"id": name, "answer": expected} for name in outputs])
    options = 'values = "any_of"\ntargets = { file = "labels.jsonl" }'
    (tmp_path / "own.py").write_text(
        "def score(row): return [one['name'] for one in row['tool_calls']].count('a')"
    )
    write_scorers(
        tmp_path,
        f'kind = "tool_calls"\n{options}',
        f'name = "share"\nkind = "tool_calls"\npartial = true\n{options}',
        'kind = "python"\nfunction = "own.py:score"',
    )
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert values(run, "tool_calls") == {"none": 0, "right": 1, "wrong": 0}
    assert values(run, "share") == {"none": 0, "right": 1, "wrong": 0.5}
    assert values(run, "python") == {"none": 0, "right": 1, "wrong": 1}
    found = scores(run, "tool_calls")
    assert (found["none"]["reason"], found["wrong"]["reason"]) == ("wrong_count", "wrong_value")
    assert found["wrong"]["explanation"] == 'b: y is 3, expected 2 or ""'
    assert json.loads(found["right"]["answer"])[0] == {"name": "b", "arguments": {"y": 2}}
    assert json.loads(found["right"]["target"]) == expected


def test_other_kinds_of_scorers(tmp_path: Path, batchrun: Command) -> None:
    table = pa.table(
        {
            "id": [1, 2],
            "text": ["The answer is (B).", '{"a": 1}'],
            "choices": [["red", "green"], ["yes", "no"]],
            "letter": [1, 0],
            "several": [["The answer is (B).", "x"], ["y"]],
            "calls": pa.array([[{"n": 1, "m": None}], None]),
        }
    )
    pq.write_table(table, tmp_path / "answers.parquet")
    imported = batchrun(
        *("import", "answers.parquet", "--id", "id", "--text", "text", "-o", "run"),
        *(word for name in ("choices", "letter", "several") for word in ("--carry", name)),
    )
    assert imported.returncode == 0, imported.stderr
    (tmp_path / "schema.json").write_text('{"type": "object", "required": ["a"]}')
    write_scorers(
        tmp_path,
        'kind = "choice"\ncolumn = "choices"\ntarget = "letter"',
        'kind = "exact"\ntarget = "several"',
        'kind = "json"\nschema = "schema.json"',
    )
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert values(run, "choice") == {"1": 1, "2": 0}
    assert scores(run, "choice")["2"]["reason"] == "no_choice"
    assert values(run, "exact") == {"1": 1, "2": 0}
    assert scores(run, "exact")["1"]["target"] == '["The answer is (B).","x"]'
    assert values(run, "json") == {"1": 0, "2": 1}


def test_similarity_and_math(run: Path, tmp_path: Path, batchrun: Command) -> None:
    pytest.importorskip("rapidfuzz", reason="needs the extra eval")
    pytest.importorskip("math_verify", reason="needs the extra math")
    write_scorers(
        tmp_path,
        'name = "near"\nkind = "similarity"\nthreshold = 0.5',
        """
        name = "sorted"
        kind = "similarity"
        measure = "token_sort"
        target = "think I {{ target }}"
        """,
        'name = "jaro"\nkind = "similarity"\nmeasure = "jaro_winkler"',
        """
        kind = "math"
        target = "{{ '1/2 + 9/2' if row.custom_id == 'd' else 'x^2' }}"
        """,
    )
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0, done.stderr
    near = values(run, "near")
    assert near["d"] == 1
    assert near["c"] == pytest.approx(2 / 10)
    assert scores(run, "near")["a"]["passed"] is True
    assert values(run, "sorted")["a"] == 1
    assert values(run, "jaro")["d"] == 1
    assert values(run, "math") == {"a": 0, "b": 0, "c": 0, "d": 1}


def test_a_scorer_whose_library_is_missing_says_how_to_install_it(
    run: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    for name in ("rapidfuzz", "math_verify"):
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text("raise ImportError")
    path = f"{tmp_path / 'hidden'}{os.pathsep}{environment['PYTHONPATH']}"
    for kind, extra in (("similarity", "eval"), ("math", "math")):
        write_scorers(tmp_path, f'kind = "{kind}"')
        done = run_batchrun(
            tmp_path, {**environment, "PYTHONPATH": path}, "score", run, "scorers.toml"
        )
        assert done.returncode == 2
        assert f"pip install 'batchrun[{extra}]'" in done.stderr


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ('kind = "nmber"', "did you mean `number`?"),
        ('name = "x"', "it has no kind"),
        ('kind = "exact"\nignorecase = true', "did you mean `ignore_case`?"),
        ('kind = "exact"\nname = "A b"', "it must be 1 to 40 of the characters a-z, 0-9, _ and -"),
        ('kind = "exact"\n[[scorers]]\nkind = "exact"', 'there is another scorer "exact"'),
        ('kind = "exact"\ntarget = "answr"', "target names the column `answr`"),
        ('kind = "exact"\ntarget = "{{ answr }}"', "target names the column `answr`"),
        ('kind = "exact"\ntarget = "{{ target"', "the template cannot be read"),
        ('kind = "exact"\ninput = "{{ outputtext }}"', "did you mean `output_text`?"),
        ('kind = "exact"\ntarget = ""', "target is a column, a template, or false"),
        ('kind = "exact"\ntarget = "empty"', 'row "a": the target is empty'),
        ('kind = "exact"\ntargets = { file = "no.jsonl" }', "no such file"),
        ('kind = "exact"\ntargets = { file = "few.jsonl" }', 'has no target for the row "b"'),
        ('kind = "exact"\ntarget = false\ntargets = { file = "few.jsonl" }', "contradict each"),
        (
            'kind = "exact"\ntargets = { file = "few.jsonl", column = "anser" }',
            "did you mean `answer`?",
        ),
        ('kind = "regex"', "pattern is missing"),
        ('kind = "regex"\npattern = "("', "pattern is not a regular expression"),
        ('kind = "regex"\npattern = "(a)"\ngroup = 2', "pattern has no group 2"),
        (f'kind = "regex"\npattern = "(a+)+b"\n{_MANY}', "took longer than 0.3 s"),
        (f'kind = "number"\nafter = "(a+)+b"\ntarget = "row"\n{_MANY}', "took longer than 0.3 s"),
        ('kind = "choice"\nletters = "XY"', "is none of the choices X, Y"),
        ('kind = "json"', "the target is not JSON"),
        ('kind = "json"\nschema = "no.json"', "cannot be read"),
        ('kind = "json"\nschema = { type = "objekt" }', "schema is not a JSON Schema"),
        ('kind = "python"\nfunction = "own.py"', "write it as file.py:name"),
        ('kind = "python"\nfunction = "no.py:score"', "no.py: cannot be read"),
        ('kind = "python"\nfunction = "own.py:scor"', "did you mean `score`?"),
        (
            'kind = "python"\nfunction = "broken.py:score"',
            "it cannot be imported: ModuleNotFoundError",
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_overwritten(
    run: Path, tmp_path: Path, batchrun: Command, scorer: str, said: str
) -> None:
    (tmp_path / "own.py").write_text("def score(row): return 1")
    (tmp_path / "broken.py").write_text("import no_such_module_at_all")
    write_rows(tmp_path / "few.jsonl", [{"id": "a", "answer": "x"}])
    name = scorer.partition('name = "')[2].partition('"')[0] or scorer.split('"')[1]
    before = run / "scores" / name / "scores.parquet"
    before.parent.mkdir(parents=True)
    before.write_bytes(b"scores of before")
    if "empty" in scorer:
        scorer = scorer.replace('"empty"', "\"{{ '' if row.custom_id == 'a' else 'x' }}\"")
    write_scorers(tmp_path, scorer)
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert before.read_bytes() == b"scores of before"
    assert [path.name for path in before.parent.iterdir()] == [before.name]


def test_from_the_library(run: Path) -> None:
    (result,) = library.score(run, [{"kind": "exact"}])
    assert (result.name, result.fresh, result.raised) == ("exact", 4, 0)
    assert result.metrics["value"].mean == 0.25
    assert result.path == run / "scores" / "exact" / "scores.parquet"
    with pytest.raises(library.JobError, match='there is no scorer "exct"; did you mean `exact`'):
        library.score(run, [{"kind": "exact"}], only=["exct"])


def test_a_table_of_answers_is_scored(tmp_path: Path) -> None:
    table = pa.table(
        {
            "custom_id": [1, 1, 2],
            "sample": [0, 1, 0],
            "output_text": ["4", "5", ""],
            "answer": ["4", "4", "5"],
            "status": ["completed", "completed", "failed"],
        }
    )
    found = library.score(table, [{"kind": "number"}, {"kind": "exact"}])
    assert found.schema.names == [*_COLUMNS]
    rows = [
        (one["scorer"], one["custom_id"], one["sample"], one["value"]) for one in found.to_pylist()
    ]
    assert rows == [
        (scorer, custom_id, sample, value)
        for scorer in ("number", "exact")
        for custom_id, sample, value in (("1", 0, 1), ("1", 1, 0), ("2", 0, None))
    ]
    (tmp_path / "own.py").write_text("def score(rows): return len(rows)")
    own = {"kind": "python", "function": str(tmp_path / "own.py:score"), "rows": "samples"}
    assert library.score(table, [own])["value"].to_pylist() == [2, 2, None]
    with pytest.raises(library.JobError, match="needs the column custom_id"):
        library.score(pa.table({"id": [1]}), [{"kind": "exact"}])


def test_another_command_that_scores_is_waited_for(
    run: Path, tmp_path: Path, batchrun: Command
) -> None:
    write_scorers(tmp_path, 'kind = "exact"')
    (run / "scores").mkdir()
    with (run / "scores" / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = batchrun("score", "run", "scorers.toml")
    assert busy.returncode == 2
    assert "another command scores it" in busy.stderr
    assert batchrun("score", "run", "scorers.toml").returncode == 0


def test_rows_that_are_only_in_the_journal_are_scored(tmp_path: Path) -> None:
    layout = Layout(None, (column("answer", pa.string()),))
    run = RunDir.open(tmp_path / "run")
    run.save(run_record(layout))
    run.start(part_rows=2, part_bytes=1 << 20)
    for at in range(5):
        request = Request(at, f"r{at}", "q.jsonl", b"{}", f"{at:016x}", "m", None, (str(at % 2),))
        body = {"object": "response", "id": f"resp_{at}", "status": "completed", "output": []}
        answer = parse_response(json.dumps({**body, "output_text": "1"}).encode(), request)
        assert isinstance(answer, Response)
        attempt = Attempt(0, 1.0, "first", 200)
        run.store(Outcome(request, answer, (attempt,), "http://127.0.0.1", "plain", counted=0))
    run.close()  # as a kill leaves it: the last rows are in no part
    (result,) = library.score(run.path, [{"kind": "exact"}])
    assert values(run.path, "exact") == {"r0": 0, "r1": 1, "r2": 0, "r3": 1, "r4": 0}
    assert {row["response_id"] for row in scores(run.path, "exact").values()} == {
        f"resp_{at}" for at in range(5)
    }
    own = {"kind": "python", "function": str(tmp_path / "own.py:score"), "rows": "samples"}
    (tmp_path / "own.py").write_text("def score(rows): return [len(rows) for _ in rows]")
    (result,) = library.score(run.path, [own])
    assert result.metrics["value"].scored == 5
    (result,) = library.score(run.path, [own])
    assert result.fresh == 0


@pytest.mark.parametrize("name", ["complete", "killed", "not_ok", "renamed"])
def test_runs_of_an_earlier_release_are_scored(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RELEASED / name / "run", run)
    carried = read_record(run)["layout"]["columns"]
    scorers: list[Mapping[str, object]] = [
        {"kind": "regex", "pattern": ".", "target": False},
        {"kind": "python", "function": str(tmp_path / "own.py:score"), "target": False},
    ]
    for at, one in enumerate(carried):
        text = f"x{{{{ row['{one['name']}'] }}}}"
        scorers.append(
            {"kind": "includes", "name": f"of{at}", "input": text, "target": "custom_id"}
        )
    (tmp_path / "own.py").write_text("def score(row): return len(row['attempts'] or ())")
    for result in library.score(run, scorers):
        assert result.raised == 0
        assert (result.metrics["value"].scored or 0) > 0


def test_a_kill_leaves_the_old_scores_and_no_process(
    run: Path, tmp_path: Path, environment: dict[str, str], batchrun: Command
) -> None:
    code = """
import os, pathlib, time
def score(row):
    pathlib.Path("new").write_text(str(os.getpid()))
    pathlib.Path("new").rename("pid")
    while pathlib.Path("wait").exists() and row["custom_id"] == "c":
        time.sleep(0.01)
    return {value}
"""
    (tmp_path / "own.py").write_text(code.format(value=1))
    write_scorers(tmp_path, 'name = "own"\nkind = "python"\nfunction = "own.py:score"')
    assert batchrun("score", "run", "scorers.toml").returncode == 0
    (tmp_path / "own.py").write_text(code.format(value=2))
    (tmp_path / "wait").touch()
    (tmp_path / "pid").unlink()
    words = [*COMMAND, "score", "run", "scorers.toml"]
    with subprocess.Popen(words, cwd=tmp_path, env=environment) as process:
        wait_until((tmp_path / "pid").exists)
        process.kill()
    worker = int((tmp_path / "pid").read_text())
    (tmp_path / "wait").unlink()
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert values(run, "own") == dict.fromkeys("abcd", 1)
    assert batchrun("verify", "run").returncode == 0
    assert batchrun("score", "run", "scorers.toml").returncode == 0
    assert values(run, "own") == dict.fromkeys("abcd", 2)
    assert [path.name for path in (run / "scores" / "own").iterdir()] == ["scores.parquet"]


def test_samples_whose_rows_have_other_numbers_are_together(tmp_path: Path) -> None:
    """The input was in another order when the second samples were sent."""
    run = RunDir.open(tmp_path / "run")
    run.save(run_record())
    run.start(part_rows=2, part_bytes=1 << 20)
    for sample in (0, 1):
        for at, name in enumerate("abc" if sample else "cba"):
            request = Request(at, name, "q.jsonl", b"{}", "0" * 16, "m", None, (), sample)
            body = {"object": "response", "status": "completed", "output": [], "output_text": name}
            answer = parse_response(json.dumps(body).encode(), request)
            assert isinstance(answer, Response)
            run.store(
                Outcome(request, answer, (Attempt(0, 1.0, "first", 200),), "u", "plain", counted=0)
            )
    run.close()
    (tmp_path / "own.py").write_text("""
def score(rows):
    assert len({row["custom_id"] for row in rows}) == 1
    return len(rows)
""")
    own = {"kind": "python", "function": str(tmp_path / "own.py:score"), "rows": "samples"}
    (result,) = library.score(run.path, [own])
    assert (result.metrics["value"].scored, result.metrics["value"].mean) == (6, 2)
