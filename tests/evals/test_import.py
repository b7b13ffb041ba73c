import gzip
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

# Outputs that others have scored: openai/grade-school-math at 3101c7d5, MIT.
_GSM8K = Path(__file__).parents[3] / "shared" / "data" / "evals" / "gsm8k_model_solutions.jsonl"


def write(path: Path, *rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def responses(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        ds.dataset(run / "responses", format="parquet").to_table().to_pylist()
    )
    return sorted(rows, key=lambda row: (row["row"], row["variant"] or "", row["sample"]))


def test_answers_from_elsewhere_are_a_run(tmp_path: Path, batchrun: Command) -> None:
    write(
        tmp_path / "a.jsonl",
        {"q": 7, "out": "yes", "gold": ["yes", "y"], "who": "m1", "target": 3, "ok": True, "x": 1},
        {"q": 8, "out": " ", "gold": ["no"], "who": "m1", "target": 4, "ok": False, "x": 2},
        {"q": 8, "out": None, "gold": ["no"], "who": "m2", "target": 5, "ok": False, "x": 3},
        {"q": 9, "out": {"a": math.nan}, "gold": [], "who": None, "target": 6, "ok": None, "x": 4},
    )
    made = batchrun(
        *("import", "a.jsonl", "--id", "q", "--text", "out", "--target", "gold", "--model", "who"),
        *("--variant", "who", "--carry", "target", "--carry", "ok", "-o", "runs/new"),
    )
    assert made.returncode == 0, made.stderr
    assert "4 answers imported, 2 of them not ok" in made.stdout
    run = tmp_path / "runs" / "new"
    rows = responses(run)
    assert [(row["custom_id"], row["sample"], row["variant"]) for row in rows] == [
        ("7", 0, "m1"),
        ("8", 0, "m1"),
        ("8", 0, "m2"),
        ("9", 0, None),
    ]
    assert [row["status"] for row in rows] == ["completed"] * 4
    assert [row["error_kind"] for row in rows] == [None, "empty_output", "empty_output", None]
    assert [row["output_text"] for row in rows] == ["yes", " ", None, '{"a":null}']
    assert [row["target"] for row in rows] == ['["yes","y"]', '["no"]', '["no"]', "[]"]
    assert [row["target_2"] for row in rows] == [3, 4, 5, 6]
    assert [row["ok_input"] for row in rows] == [True, False, False, None]
    assert [row["model"] for row in rows] == ["m1", "m1", "m2", None]
    for name in ("request", "request_hash", "model_requested", "endpoint", "via", "cost_usd"):
        assert {row[name] for row in rows} == {None}
    assert "x" not in rows[0]
    assert json.loads(rows[0]["output"])[0]["content"][0]["text"] == "yes"

    verified = batchrun("verify", "runs/new")
    assert verified.returncode == 0, verified.stdout
    assert "4 rows, each once" in verified.stdout
    assert "imported: the answer was produced elsewhere" in batchrun("show", "runs/new", "7").stdout
    for command in ("status", "report", "cost"):
        assert batchrun(command, "runs/new").returncode == 0
    assert batchrun("export", "runs/new", "out.csv").returncode == 0


def test_nothing_is_sent_to_an_imported_run(tmp_path: Path, batchrun: Command) -> None:
    write(tmp_path / "a.jsonl", {"q": "a", "out": "yes"})
    imported = ("import", "a.jsonl", "--id", "q", "--text", "out", "-o", "run")
    assert batchrun(*imported).returncode == 0
    before = responses(tmp_path / "run")
    asked = ("run", "a.jsonl", "--prompt", "{{ out }}", "--model", "m", "-o", "run", "--simulate")
    for options in ((), ("--rerun-changed",), ("--retry-failed",), ("--dry-run",)):
        refused = batchrun(*asked, *options)
        assert refused.returncode == 2
        assert "holds imported answers" in refused.stderr
    again = batchrun(*imported)
    assert again.returncode == 2
    assert "run exists already" in again.stderr
    assert responses(tmp_path / "run") == before
    assert batchrun("verify", "run").returncode == 0


def test_samples_in_parquet(tmp_path: Path, batchrun: Command) -> None:
    table = pa.table(
        {
            "id": ["a", "a", "b"],
            "out": ["1", "2", "3"],
            "n": pa.array([0, 1, 0], pa.int8()),
            "gold": pa.array([[1.5], [1.5], None], pa.list_(pa.float64())),
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    made = batchrun(
        *("import", "in", "--id", "id", "--text", "out"),
        *("--sample", "n", "--target", "gold", "-o", "run"),
    )
    assert made.returncode == 0, made.stderr
    rows = responses(tmp_path / "run")
    assert [(row["custom_id"], row["sample"], row["target"]) for row in rows] == [
        ("a", 0, [1.5]),
        ("a", 1, [1.5]),
        ("b", 0, None),
    ]
    assert batchrun("verify", "run").returncode == 0


def test_results_of_a_batch_with_calls_usage_and_errors(tmp_path: Path, batchrun: Command) -> None:
    body = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "gpt-6-luna-2026-05-01",
        "output": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}],
        "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
    }
    call = {"id": "c", "type": "function", "function": {"name": "g", "arguments": '{"x": 1}'}}
    chat = {
        "id": "chatcmpl_1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {"finish_reason": "length", "message": {"content": "So", "tool_calls": [call]}}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }

    def line(name: str, body: object, status: int = 200) -> dict[str, object]:
        response = {"status_code": status, "request_id": "req", "body": body}
        return {"id": "batch_req", "custom_id": name, "response": response, "error": None}

    limit = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
    # Their ids look like those of an export, and stay whole.
    rows = [line("a|m1|0", body), line("a|m1|1", chat), line("b|m1|2147483648", limit, 429)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "results.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    made = batchrun("import", "results.jsonl.gz", "-o", "run")
    assert made.returncode == 0, made.stderr
    found = responses(tmp_path / "run")
    keys = [(row["custom_id"], row["variant"], row["sample"]) for row in found]
    assert keys == [(name, None, 0) for name in ("a|m1|0", "a|m1|1", "b|m1|2147483648")]
    assert "split" not in made.stdout
    assert [row["status"] for row in found] == ["completed", "incomplete", "failed"]
    assert [row["error_kind"] for row in found] == [None, "truncated", "rate_limit"]
    assert [row["input_tokens"] for row in found] == [7, 5, None]
    assert [row["tool_call_count"] for row in found] == [1, 1, None]
    calls = pq.read_table(tmp_path / "run" / "tool_calls").to_pylist()
    assert [(one["name"], one["arguments"]) for one in calls] == [("f", "{}"), ("g", '{"x": 1}')]
    assert batchrun("verify", "run").returncode == 0


def test_samples_and_variants_come_back_from_an_export(tmp_path: Path, batchrun: Command) -> None:
    keys = [("a|x|1", 0, "m1"), ("a|x|1", 1, "m1"), ("a|x|1", 0, None), ("b", 3, "m2")]
    write(tmp_path / "a.jsonl", *({"q": q, "n": n, "v": v, "out": "yes"} for q, n, v in keys))
    columns = ("--id", "q", "--text", "out", "--sample", "n", "--variant", "v")
    assert batchrun("import", "a.jsonl", *columns, "-o", "one").returncode == 0
    assert batchrun("export", "one", "b.jsonl", "--format", "batch").returncode == 0
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    # Also where some are missing, and others beside them are of another origin.
    other = {**json.loads(lines[0]), "id": "batch_req_1", "custom_id": "mmlu|anatomy|12"}
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[1:], json.dumps(other)]))
    made = batchrun("import", "b.jsonl", "-o", "two")
    assert "4 answers imported; 3 ids split into id, variant and sample" in made.stdout, made.stderr
    found = {
        (row["custom_id"], row["sample"], row["variant"]) for row in responses(tmp_path / "two")
    }
    assert found == {*keys[1:], ("mmlu|anatomy|12", 0, None)}
    assert batchrun("verify", "two").returncode == 0


def test_odd_results_of_a_batch_are_repaired_or_failed_rows(
    tmp_path: Path, batchrun: Command
) -> None:
    part = {"type": "output_text", "text": "yes", "annotations": []}
    message = {"type": "message", "role": "assistant", "content": [part]}
    body = {"object": "response", "status": "completed", "output": [message]}
    good = {"status_code": 200, "body": body}
    calls = {"message": {"content": "yes", "tool_calls": 7}}
    chat = {"object": "chat.completion", "choices": [calls]}
    refused = {"status_code": "429", "body": {"error": {"message": "slow", "code": "rate_limit"}}}
    late = {"code": "batch_expired", "message": "too late"}
    odd: dict[str, tuple[Any, Any, str | None]] = {  # response, error, kind of the error
        "half a pair": ({**good, "body": {**body, "x": "\ud800"}}, None, None),
        "no number": ({**good, "x": math.nan, "body": {**body, "x": -math.inf}}, None, None),
        "status as text": ({**good, "status_code": "200"}, None, None),
        "as text": (json.dumps({**good, "body": json.dumps(body)}), None, None),
        "calls": ({**good, "body": chat}, None, None),
        "refused": (refused, None, "rate_limit"),
        "error as text": (None, json.dumps(late), "server_error"),
        "text": ("none", None, "unreadable"),
        "list": ([good], None, "unreadable"),
        "no body": ({"status_code": 200}, None, "unreadable"),
        "nothing": (None, None, "server_error"),
    }
    names = list(odd)
    write(
        tmp_path / "a.jsonl",
        *({"custom_id": n, "response": odd[n][0], "error": odd[n][1]} for n in names),
    )
    made = batchrun("import", "a.jsonl", "-o", "run")
    assert made.returncode == 0, made.stderr
    rows = responses(tmp_path / "run")
    assert {row["custom_id"]: row["error_kind"] for row in rows} == {n: odd[n][2] for n in names}
    assert {row["output_text"] for row in rows if row["ok"]} == {"yes"}
    assert batchrun("verify", "run").returncode == 0

    given = [odd[n][0] for n in names]
    said = [one if one is None or isinstance(one, str) else json.dumps(one) for one in given]
    errors = pa.array([odd[n][1] for n in names], pa.string())
    as_text = pa.table({"custom_id": names, "response": said, "error": errors})
    pq.write_table(as_text, tmp_path / "text.parquet")
    structs = pa.table({"custom_id": names[2:3], "response": [odd["status as text"][0]]})
    pq.write_table(structs, tmp_path / "structs.parquet")
    assert batchrun("import", "structs.parquet", "-o", "structs").returncode == 0
    assert batchrun("import", "text.parquet", "-o", "text").returncode == 0
    again = responses(tmp_path / "text")
    for name in ("custom_id", "error_kind", "output_text", "http_status"):
        assert [row[name] for row in again] == [row[name] for row in rows]
    assert [row["output_text"] for row in responses(tmp_path / "structs")] == ["yes"]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"q": 1, "out": "a"}] * 2, "--id q --text out", 'two rows have the id "1"'),
        ([{"q": 1, "out": "a"}], "--id qq --text out", "--id names the column `qq`"),
        ([{"q": 1, "out": "a"}], "--id q --text ot", "did you mean `out`?"),
        ([{"q": 1, "out": "a"}], "--id q --text out --carry x", "--carry names the column `x`"),
        ([{"q": None, "out": "a"}], "--id q --text out", "a.jsonl:1: `q` is null"),
        ([{"q": 1, "out": "a", "n": -1}], "--id q --text out --sample n", "`n` is -1; a sample"),
        ([{"q": 1, "out": "a", "v": "m 1"}], "--id q --text out --variant v", "`v` is m 1"),
        ([{"q": 1, "out": "a"}], "", "not a result of the Batch API"),
        ([{"custom_id": math.nan, "response": None}], "", "a.jsonl:1: `custom_id` is NaN"),
        ([{"q": 1, "out": "a"}], "--text out", "--text needs --id"),
        ([{"q": 1, "out": "a"}], "--id q", "--text COLUMN"),
        ([], "--id q --text out", "no rows"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(
    tmp_path: Path, batchrun: Command, rows: list[object], options: str, said: str
) -> None:
    write(tmp_path / "a.jsonl", *rows)
    refused = batchrun("import", "a.jsonl", *options.split(), "-o", "run")
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.skipif(not _GSM8K.exists(), reason="the shared data is not here")
def test_all_verdicts_of_gsm8k_through_the_commands(tmp_path: Path, batchrun: Command) -> None:
    rows = [json.loads(line) for line in _GSM8K.read_text(encoding="utf-8").splitlines()]
    methods = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    write(
        tmp_path / "answers.jsonl",
        *(
            {
                "id": at,
                "text": row[method]["solution"],
                "right": row[method]["is_correct"],
                "target": row["ground_truth"],
                "method": method,
            }
            for at, row in enumerate(rows)
            for method in methods
        ),
    )
    made = batchrun(
        *("import", "answers.jsonl", "--id", "id", "--text", "text", "--target", "target"),
        *("--variant", "method", "--carry", "right", "-o", "run"),
    )
    assert made.returncode == 0, made.stderr
    (tmp_path / "scorers.toml").write_text('[[scorers]]\nkind = "number"\n')
    done = batchrun("score", "run", "scorers.toml")
    assert done.returncode == 0, done.stderr
    query = """
        SELECT variant, sum(value)::INT AS n, count(*) FILTER ((value = 1) <> "right") AS wrong
        FROM scores JOIN responses USING (run, custom_id, sample, variant) GROUP BY ALL
    """
    found = json.loads(batchrun("sql", "run", query, "--format", "json").stdout)
    assert {row["variant"]: (row["n"], row["wrong"]) for row in found} == dict(
        zip(methods, ((286, 0), (515, 0), (458, 0), (742, 0)), strict=True)
    )
