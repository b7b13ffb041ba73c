"""Each file in jobs/ and examples/ is run, and DuckDB says whether what came of it is right."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import jsonschema  # type: ignore[import-untyped] # it ships no types
import pyarrow.parquet as pq
import pytest

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent
JOBS, EXAMPLES = ROOT / "jobs", ROOT / "examples"
FUNCTION_CALLS = ROOT.parent / "shared" / "data" / "bfcl_parallel.jsonl"
NULL_FOR_NOW = ("variant",)


def environment() -> dict[str, str]:
    """As a newcomer has it: no key, no endpoint, the project on the path."""
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "PYTHON"))
    }
    return {**known, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=HANG_S,
        check=False,
    )


def batchrun(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = run(folder, "-m", "batchrun", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def script(folder: Path, name: str, *arguments: str | Path) -> str:
    done = run(folder, EXAMPLES / name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def simulator(folder: Path, *arguments: str) -> Iterator[str]:
    """The base URL of a simulator with settings of its own."""
    command = [sys.executable, "-m", "batchrun", "simulate", "--port", "0", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, encoding="utf-8"
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def rows_of(name: str) -> list[dict[str, Any]]:
    with (EXAMPLES / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def ask(run_path: Path, query: str) -> list[tuple[Any, ...]]:
    """What DuckDB says, with `responses` and `tool_calls` as views."""
    with duckdb.connect() as connection:
        for table in ("responses", "tool_calls"):
            parts = f"{run_path}/{table}/*.parquet"
            connection.execute(f"CREATE VIEW {table} AS FROM '{parts}'")
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def overnight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overnight")
    batchrun(folder, "run", JOBS / "overnight_dataset.toml", "--simulate", "--quiet")
    return folder / "runs" / "overnight_dataset-simulated"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    simulated = ("--simulate", "--answers", EXAMPLES / "questions.jsonl", "--right", "0.7")
    batchrun(folder, "run", JOBS / "eval_run.toml", *simulated, "--quiet")
    return folder / "runs" / "eval_run-simulated"


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cost")
    batchrun(folder, "run", JOBS / "cost_estimate.toml", "--simulate", "--quiet")
    return folder / "runs" / "cost_estimate-simulated"


def test_captions_are_asked_for_with_the_images_of_a_parquet_file(tmp_path: Path) -> None:
    batchrun(tmp_path, "run", EXAMPLES / "captions.toml", "--simulate", "--quiet")
    run_path = tmp_path / "runs" / "captions-simulated"
    answered = ask(run_path, "SELECT custom_id, ok, color, shape, request FROM responses")
    assert len(answered) == 8
    shapes = pq.read_table(EXAMPLES / "shapes.parquet").to_pylist()
    given = {row["id"]: (row["color"], row["shape"], row["image"]["bytes"]) for row in shapes}
    for name, ok, color, shape, request in answered:
        text, image = json.loads(request)["input"][0]["content"]
        assert (ok, (color, shape)) == (True, given[name][:2])
        assert text["type"] == "input_text"
        start, _, content = image["image_url"].partition(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(content) == given[name][2]


@pytest.mark.long
def test_a_killed_worker_leaves_each_row_once_in_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    said = script(
        tmp_path,
        "kill_a_worker.py",
        *("run", sys.executable, "-m", "batchrun", "run", EXAMPLES / "questions.jsonl"),
        *("--prompt", "{{ question }}", "--model", "gpt-6-luna", "--samples", "40", "--simulate"),
        *("--concurrency", "30", "--executor", "ray", "--workers", "3", "-o", "run"),
    )
    assert "killed worker w" in said
    assert "worker_adopted" in said
    rows = duckdb.read_parquet(f"{tmp_path}/run/responses/*.parquet")
    assert rows.aggregate("count(*), count(DISTINCT (row, sample))").fetchall() == [(1600, 1600)]
    batchrun(tmp_path, "verify", "run")


def test_each_file_in_jobs_and_examples_has_its_test_here() -> None:
    # tickets.jsonl is run by tests/test_cost_review.py.
    there = {
        path.name for folder in (JOBS, EXAMPLES) for path in folder.iterdir() if path.is_file()
    }
    tested = set(re.findall(r"\w+\.(?:toml|jsonl|parquet|py)\b", Path(__file__).read_text("utf-8")))
    assert not there - tested - {"README.md"}


def test_the_readme_of_the_examples_names_each_of_them() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert not {name for name in there if f"`{name}" not in text}


@pytest.mark.parametrize("job", sorted(path.name for path in JOBS.glob("*.toml")))
def test_each_job_can_be_planned_without_a_key_and_leaves_nothing(job: str, tmp_path: Path) -> None:
    done = batchrun(tmp_path, "run", JOBS / job, "--dry-run")
    assert json.loads(done.stdout)["model"] in ("gpt-6.1-terra", "gpt-6-luna")
    assert not list(tmp_path.iterdir())


def test_the_overnight_job_gives_one_row_for_each_of_tools_jsonl(overnight: Path) -> None:
    assert ask(overnight, "SELECT custom_id, topic, ok, status FROM responses ORDER BY row") == [
        (row["custom_id"], row["topic"], True, "completed") for row in rows_of("tools.jsonl")
    ]


def test_the_overnight_job_gives_valid_calls_and_several_at_once(overnight: Path) -> None:
    total, valid = ask(overnight, "SELECT count(*), count_if(arguments_valid) FROM tool_calls")[0]
    assert total == valid >= 25
    assert ask(overnight, "SELECT sum(tool_call_count) FROM responses") == [(total,)]
    several = "SELECT count_if(tool_call_count > 1) FROM responses"
    assert ask(overnight, several)[0][0] >= 5
    stray = """
        SELECT custom_id, name FROM tool_calls JOIN responses USING (row, custom_id)
        WHERE NOT contains(request, '"name":"' || name || '"')
    """
    assert ask(overnight, stray) == []


def test_the_chinese_prompt_goes_out_as_it_was_written(overnight: Path) -> None:
    request = ask(overnight, "SELECT request FROM responses WHERE custom_id = 'desk-zh'")[0][0]
    (row,) = (row for row in rows_of("tools.jsonl") if row["custom_id"] == "desk-zh")
    assert json.loads(request)["input"] == row["input"]
    assert json.loads(request)["tools"] == row["tools"]


def test_columns_that_the_readme_calls_null_for_now_are_null(overnight: Path) -> None:
    counts = dict(ask(overnight, "SELECT column_name, count FROM (SUMMARIZE responses)"))
    nulls = dict(ask(overnight, "SELECT column_name, null_percentage FROM (SUMMARIZE responses)"))
    assert {(counts[name], int(nulls[name])) for name in NULL_FOR_NOW} == {(25, 100)}
    tries = "SELECT count(*) - count(a.cost_usd) FROM responses, unnest(attempts) t(a)"
    assert ask(overnight, tries) == [(0,)]


def test_read_tables_says_what_duckdb_says(overnight: Path, tmp_path: Path) -> None:
    said = script(tmp_path, "read_tables.py", overnight)
    assert re.search(r"completed\W+NULL\W+25\W+25\b", said)
    most = "SELECT name, count(*) AS n FROM tool_calls GROUP BY name ORDER BY n DESC, name LIMIT 5"
    for name, calls in ask(overnight, most):
        assert re.search(rf"{name} +┆ {calls} ", said), name
    query = """
        SELECT model, sum(input_tokens), sum(output_tokens), sum(reasoning_tokens)
        FROM responses GROUP BY model
    """
    for model, spent, made, thought in ask(overnight, query):
        figures = rf"^{re.escape(model)} +{spent} +0 +{made} +{thought}$"
        assert re.search(figures, said, re.MULTILINE)


def test_the_eval_job_carries_topic_and_answer_of_questions_jsonl(evaluated: Path) -> None:
    asked = rows_of("questions.jsonl")
    query = (
        "SELECT custom_id, topic, answer FROM responses WHERE ok "
        "GROUP BY ALL HAVING count(*) = 8 ORDER BY min(row)"
    )
    assert ask(evaluated, query) == [(row["id"], row["topic"], row["answer"]) for row in asked]
    (request,) = ask(evaluated, "SELECT request FROM responses WHERE row = 0")[0]
    assert json.loads(request)["input"] == f"Topic: arithmetic\n\n{asked[0]['question']}"


def test_the_scorers_of_the_eval_job_find_the_right_ones(evaluated: Path) -> None:
    """By the last line of the text, read in another way."""
    batchrun(evaluated, "score", evaluated)
    texts = ask(evaluated, "SELECT custom_id, sample, variant, answer, output_text FROM responses")
    truth = {(*key, text.rpartition("\nAnswer: ")[2] == answer) for *key, answer, text in texts}
    assert {right for *_, right in truth} == {True, False}
    for name in ("answer", "mentioned"):
        file = evaluated / "scores" / name / "scores.parquet"
        rows = ask(evaluated, f"SELECT custom_id, sample, variant, passed FROM '{file}'")  # noqa: S608
        assert set(rows) == truth


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("42", "6 times 7 makes 42.\nAnswer: 42", 1),
        ("Danube", "**Thinking**\nAnswer: danube.", 1),
        ("Danube", "Answer: Rhine, not the Danube", 0),
        ("4", "Answer: 40", 0),
        ("4", "Answer: -4", 0),
        ("yes", "", 0),
    ],
)
def test_the_pattern_of_the_eval_job_reads_the_last_line(
    answer: str, text: str, right: int
) -> None:
    import tomllib

    from batchrun.scoring.text_match import normaliser, regex

    scorer, _ = tomllib.loads((JOBS / "eval_run.toml").read_text(encoding="utf-8"))["scorers"]
    normalise = normaliser(ignore_case=scorer["ignore_case"])
    found = regex(text, (answer,), re.compile(scorer["pattern"]), normalise=normalise)
    assert found.value == right


def test_the_cost_job_converts_chat_jsonl(estimated: Path) -> None:
    asked = {row["custom_id"]: row for row in rows_of("chat.jsonl")}
    rows = ask(estimated, "SELECT custom_id, ok, request, output_text FROM responses")
    assert {name for name, ok, _, _ in rows if ok} == asked.keys()
    assert all(request is None for _, _, request, _ in rows)
    texts = {name: text for name, _, _, text in rows}
    for name in ("schema", "schema-2"):
        schema = asked[name]["response_format"]["json_schema"]["schema"]
        jsonschema.validate(json.loads(texts[name]), schema)
    fit = "SELECT custom_id FROM responses WHERE output_parsed_ok ORDER BY custom_id"
    assert ask(estimated, fit) == [("schema",), ("schema-2",)]
    calls = ask(estimated, "SELECT DISTINCT custom_id, name FROM tool_calls ORDER BY ALL")
    assert calls == [("forced", "weather"), ("tools", "weather")]


def test_the_cost_job_sends_what_it_names(tmp_path: Path) -> None:
    first = json.loads(batchrun(tmp_path, "run", JOBS / "cost_estimate.toml", "--dry-run").stdout)
    row = rows_of("chat.jsonl")[0]
    assert first["temperature"] == row["temperature"]
    assert first["max_output_tokens"] == row["max_tokens"]


def test_read_tables_bears_a_run_without_any_answer(tmp_path: Path) -> None:
    rows = rows_of("questions.jsonl")[:3]
    text = "".join(json.dumps({"input": row["question"], "tools": 1}) + "\n" for row in rows)
    (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
    done = run(tmp_path, "-m", "batchrun", "run", "bad.jsonl", "--model", "m", "--simulate")
    assert done.returncode == 4, done.stderr
    run_path = tmp_path / "runs" / "bad-simulated"
    assert "bad_request" in script(tmp_path, "read_tables.py", run_path)


def test_functions_become_tools_at_every_depth(tmp_path: Path) -> None:
    parameters = {
        "type": "dict",
        "properties": {
            "point": {"type": "tuple", "items": {"type": "float"}},
            "type": {"type": "any", "description": "a property that is called so"},
            "deep": {
                "type": "dict",
                "properties": {"list": {"type": "array", "items": {"type": "dict"}}},
            },
        },
        "required": ["point"],
    }
    long = "a." * 50
    row = {
        "id": "r1",
        "question": [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]],
        "function": [
            {"name": name, "description": "", "parameters": parameters}
            for name in ("geo.point", "geo_point", long, long)
        ],
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    script(tmp_path, "functions_to_requests.py", "in.jsonl", "out.jsonl")
    made = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert made["custom_id"] == "r1"
    assert [message["content"] for message in made["input"]] == ["one", "two"]
    names = [tool["name"] for tool in made["tools"]]
    assert names[:2] == ["geo_point", "geo_point_2"]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    assert made["tools"][0]["parameters"] == {
        "type": "object",
        "properties": {
            "point": {"type": "array", "items": {"type": "number"}},
            "type": {"description": "a property that is called so"},
            "deep": {
                "type": "object",
                "properties": {"list": {"type": "array", "items": {"type": "object"}}},
            },
        },
        "required": ["point"],
    }


def fits(arguments: str, schema: dict[str, Any]) -> bool:
    """What the jsonschema package says, which batchrun does not use."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return False
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@pytest.mark.skipif(not FUNCTION_CALLS.exists(), reason=f"{FUNCTION_CALLS} is not here")
def test_validity_of_arguments_agrees_with_another_library(tmp_path: Path) -> None:
    script(tmp_path, "functions_to_requests.py", FUNCTION_CALLS, "calls.jsonl")
    with simulator(tmp_path, "--latency", "0", "--bad-arguments", "0.3") as base_url:
        batchrun(
            tmp_path,
            *("run", "calls.jsonl", "--model", "gpt-4.1", "--base-url", base_url, "--quiet"),
            *("--set", "tool_choice=required", "-o", "run"),
        )
    run_path = tmp_path / "run"
    assert ask(run_path, "SELECT count(*), count_if(ok) FROM responses") == [(200, 200)]
    schemas: dict[tuple[str, str], dict[str, Any]] = {}
    with (tmp_path / "calls.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for tool in row["tools"]:
                schemas[row["custom_id"], tool["name"]] = tool["parameters"]
    calls = ask(run_path, "SELECT custom_id, name, arguments, arguments_valid FROM tool_calls")
    verdicts = [valid for *_, valid in calls]
    assert len(verdicts) >= 200
    assert {True, False} == set(verdicts)
    assert verdicts == [fits(text, schemas[row, name]) for row, name, text, _ in calls]
