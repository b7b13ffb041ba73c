"""Every row asked several times, of several models: from the command line, and grown."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.runs import read_record

Run = Callable[..., CompletedProcess[str]]
Query = Callable[..., list[tuple[Any, ...]]]

_BASE = ("run", "prompts.jsonl", "--prompt", "{{ question }}", "-o", "run")
_TWO = ("--model", "gpt-4.1", "--model", "gpt-4.1-mini")
_BY_KEY = "SELECT custom_id, sample, variant, count(*) FROM read_parquet(?) GROUP BY ALL"
_VARIANTS = "SELECT variant, count(*) FROM read_parquet(?) GROUP BY 1 ORDER BY 1"


@pytest.fixture
def rows(write_rows: Callable[..., Path], questions: Callable[..., Any]) -> Callable[[int], None]:
    """Writes so many rows with ids."""

    def write(count: int) -> None:
        write_rows([{"id": f"q{n}", **row} for n, row in enumerate(questions(count))])

    return write


def _each_once(query: Query, rows: int, samples: int, variants: tuple[str | None, ...]) -> None:
    wanted = {(f"q{n}", s, v) for n in range(rows) for s in range(samples) for v in variants}
    found = Counter({tuple(key): count for *key, count in query(_BY_KEY)})
    assert found == Counter(dict.fromkeys(wanted, 1))


def test_rows_times_variants_times_samples_are_sent_and_stand_in_the_tables(
    rows: Callable[[int], None], simulator: Any, stats: Any, batchrun: Run, query: Query
) -> None:
    rows(7)
    url = simulator()
    words = (*_BASE, *_TWO, "--samples", 3, "--base-url", url)
    dry = batchrun(*words, "--dry-run")
    assert "plan: 7 rows x 2 variants x 3 samples = 42 requests, 0 complete, 42 to" in dry.stderr
    assert f"first request (row 0, variant gpt-4.1), POST to {url}/responses" in dry.stderr
    done = batchrun(*words)
    assert done.returncode == 0, done.stderr
    assert "done: 42 of 42 rows, 42 ok" in done.stderr
    _each_once(query, 7, 3, ("gpt-4.1", "gpt-4.1-mini"))
    model = "SELECT DISTINCT variant = model_requested FROM read_parquet(?)"
    assert query(model) == [(True,)]
    assert stats(url)["requests"] == 42
    again = batchrun(*words)
    assert (again.returncode, stats(url)["requests"]) == (0, 42)
    assert "nothing left to send" in again.stderr
    assert "42 rows, each once" in batchrun("verify", "run").stdout


def test_commands_that_look_at_a_run_know_samples_and_variants(
    rows: Callable[[int], None], batchrun: Run, tmp_path: Path
) -> None:
    rows(3)
    words = (*_BASE, *_TWO, "--samples", 2, "--simulate")
    assert batchrun(*words).returncode == 0
    shown = batchrun("show", "run", "q1").stdout
    assert shown.count("q1: row 1 of prompts.jsonl") == 4
    shown = batchrun("show", "run", "q1|gpt-4.1-mini|1").stdout
    assert "q1: row 1 of prompts.jsonl, sample 1, variant gpt-4.1-mini" in shown
    assert shown.count("q1: row") == 1
    assert batchrun("show", "run", "q1|gpt-4.1|7").returncode == 2
    (line,) = [
        one for one in batchrun("report", "run").stdout.splitlines() if one.startswith("gpt-4.1-m")
    ][:1]
    assert line.split()[:5] == ["gpt-4.1-mini", "3", "2", "6", "0"]
    counted = batchrun("sql", "run", "SELECT variant, sample, count(*) FROM responses GROUP BY ALL")
    assert counted.stdout.count("gpt-4.1-mini") == 2
    batchrun("export", "run", "batch.jsonl", "--format", "batch")
    names = [json.loads(one)["custom_id"] for one in _lines(tmp_path / "batch.jsonl")]
    assert names[:5] == ["q0|gpt-4.1|0", "q0|gpt-4.1|1", *(f"q0|gpt-4.1-mini|{n}" for n in (0, 1)),
                         "q1|gpt-4.1|0"]  # fmt: skip
    assert len(set(names)) == 12
    batchrun("export", "run", "rows.jsonl")
    keys = [json.loads(one) for one in _lines(tmp_path / "rows.jsonl")]
    assert [f"{one['custom_id']}|{one['variant']}|{one['sample']}" for one in keys] == names
    status = json.loads(batchrun("status", "run", "--json").stdout)
    assert (status["rows"], status["left"], status["samples"]) == (12, 0, 2)
    assert status["variants"] == ["gpt-4.1", "gpt-4.1-mini"]
    assert "12 (3 rows x 2 variants x 2 samples)" in batchrun("status", "run").stdout
    # A second pass has a row for each answer.
    done = batchrun("run", "run", "--prompt", "Right? {{ output_text }}", "--model", "gpt-4.1",
                    "--simulate", "-o", "judge")  # fmt: skip
    assert done.returncode == 0, done.stderr
    batchrun("export", "judge", "judge.jsonl")
    judged = [json.loads(one)["custom_id"] for one in _lines(tmp_path / "judge.jsonl")]
    assert sorted(judged) == sorted(names)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_one_sample_of_one_variant_keeps_the_ids_of_its_rows(
    rows: Callable[[int], None], batchrun: Run, tmp_path: Path
) -> None:
    rows(2)
    words = (*_BASE, "--vary", "model=gpt-4.1", "--simulate")
    assert batchrun(*words).returncode == 0
    batchrun("export", "run", "batch.jsonl", "--format", "batch")
    names = [json.loads(one)["custom_id"] for one in _lines(tmp_path / "batch.jsonl")]
    assert names == ["q0", "q1"]


def test_a_run_grows_by_what_is_missing_and_pays_nothing_twice(
    rows: Callable[[int], None], simulator: Any, stats: Any, batchrun: Run, query: Query
) -> None:
    url = simulator()

    def sent(*words: object, expect: int) -> CompletedProcess[str]:
        before = stats(url)["requests"]
        done = batchrun(*_BASE, *words, "--base-url", url)
        assert done.returncode == 0, done.stderr
        assert stats(url)["requests"] - before == expect
        return done

    rows(10)
    sent("--model", "gpt-4.1", expect=10)
    sent("--model", "gpt-4.1", "--samples", 2, expect=10)  # more samples
    _each_once(query, 10, 2, (None,))
    said = sent(*_TWO, "--samples", 2, expect=20).stderr  # none to two variants
    assert "20 rows from before variants were declared: stored as rows of gpt-4.1" in said
    _each_once(query, 10, 2, ("gpt-4.1", "gpt-4.1-mini"))
    sent("--model", "o3", *_TWO, "--samples", 2, expect=20)  # a third, before them
    rows(15)
    sent("--model", "o3", *_TWO, "--samples", 2, expect=30)  # more rows
    rows(17)
    sent("--vary", "model=o3,gpt-4.1,gpt-4.1-mini,gpt-4o", "--samples", 4, expect=182)  # together
    _each_once(query, 17, 4, ("gpt-4.1", "gpt-4.1-mini", "gpt-4o", "o3"))
    less = batchrun(*_BASE, *_TWO, "--samples", 4, "--base-url", url)
    assert less.returncode == 2
    assert "136 complete rows do not agree with the input any more" in less.stderr
    assert "q0|o3|3 (row 0): not asked for any more" in less.stderr
    assert stats(url)["requests"] == 272
    assert "272 rows, each once" in batchrun("verify", "run").stdout


def test_rows_from_before_variants_that_are_of_none_stop_the_plan(
    rows: Callable[[int], None], batchrun: Run, query: Query
) -> None:
    rows(4)
    assert batchrun(*_BASE, "--model", "gpt-4o", "--simulate").returncode == 0
    done = batchrun(*_BASE, *_TWO, "--simulate")
    assert done.returncode == 2
    assert "none of the variants (gpt-4.1, gpt-4.1-mini) makes the same requests" in done.stderr
    assert "start a new run directory with -o" in done.stderr
    assert query(_VARIANTS) == [(None, 4)]


def test_some_variants_now_and_the_others_later(
    rows: Callable[[int], None], batchrun: Run, query: Query, tmp_path: Path
) -> None:
    rows(5)
    words = (*_BASE, *_TWO, "--samples", 2, "--simulate")
    done = batchrun(*words, "--variant", "gpt-4.1-mini", "--limit", 3)
    assert done.returncode == 0, done.stderr
    assert "variant gpt-4.1-mini; limit: first 3 of 5 rows done" in done.stderr
    assert "--variant" not in done.stderr.partition("next: ")[2]
    assert query(_VARIANTS) == [("gpt-4.1-mini", 6)]
    record = read_record(tmp_path / "run")
    assert (record["state"], record["rows"]) == ("limited", 20)
    done = batchrun(*words, "--limit", 4)
    assert done.returncode == 0, done.stderr
    assert query(_VARIANTS) == [("gpt-4.1", 8), ("gpt-4.1-mini", 8)]
    assert batchrun(*words, "--retry-failed").returncode == 0
    _each_once(query, 5, 2, ("gpt-4.1", "gpt-4.1-mini"))
    assert read_record(tmp_path / "run")["state"] == "finished"


def test_each_variant_may_have_an_endpoint_and_a_key_of_its_own(
    rows: Callable[[int], None],
    simulator: Any,
    stats: Any,
    batchrun: Run,
    write_job: Any,
    query: Query,
) -> None:
    rows(6)
    one, other = simulator(), simulator()
    job = f"""
[input]
path = "prompts.jsonl"
[request]
input = "{{{{ question }}}}"
model = "gpt-4.1"
[endpoint]
base_url = "{one}"
[expand]
samples = 2
[[variants]]
name = "here"
[[variants]]
name = "there"
request = {{ model = "local" }}
endpoint = {{ base_url = "{other}", api_key_env = "OTHER_KEY", mode = "stream" }}
"""
    words = ("run", write_job(job), "-o", "run")
    missing = batchrun(*words)
    assert missing.returncode == 2
    assert f"the environment variable OTHER_KEY is not set (for {other})" in missing.stderr
    done = batchrun(*words, env={"OTHER_KEY": "a-key-of-the-other"})
    assert done.returncode == 0, done.stderr
    assert (stats(one)["requests"], stats(other)["requests"]) == (12, 12)
    found = query("SELECT DISTINCT variant, endpoint, via FROM read_parquet(?) ORDER BY 1")
    assert found == [("here", one, "plain"), ("there", other, "stream")]
    _each_once(query, 6, 2, ("here", "there"))


def test_failed_rows_are_sent_again_in_their_variant_and_sample_alone(
    rows: Callable[[int], None], simulator: Any, batchrun: Run, query: Query
) -> None:
    rows(12)
    url = simulator("--faults", "0.3", "--seed", "3")
    words = (*_BASE, *_TWO, "--samples", 2, "--max-attempts", 1)
    batchrun(*words, "--base-url", url)
    done = batchrun(*words, "--base-url", simulator(), "--retry-failed")
    assert done.returncode == 0, done.stderr
    _each_once(query, 12, 2, ("gpt-4.1", "gpt-4.1-mini"))
    assert "each once" in batchrun("verify", "run").stdout


def test_an_estimate_has_a_line_for_each_variant_and_a_pilot_sends_random_rows_in_all(
    rows: Callable[[int], None], simulator: Any, stats: Any, batchrun: Run, query: Query
) -> None:
    rows(20)
    url = simulator()
    words = (*_BASE[1:], *_TWO, "--samples", 3, "--base-url", url)
    made = json.loads(batchrun("estimate", *words, "--expect-output", 100, "--json").stdout)
    lines = {line["variant"]: line for line in made["answers"]}
    assert set(lines) == {"gpt-4.1", "gpt-4.1-mini", None}
    assert (made["rows"], made["source_rows"], made["to_send"]) == (120, 20, 120)
    assert {line["variant"]: line["rows"] for line in made["inputs"]} == {
        "gpt-4.1": 60, "gpt-4.1-mini": 60,
    }  # fmt: skip
    total = sum(lines[name]["usd"]["standard"] for name in ("gpt-4.1", "gpt-4.1-mini"))
    assert lines[None]["usd"]["standard"] == pytest.approx(total)
    text = batchrun("estimate", *words).stdout
    assert "120 requests to send of 120 (20 rows)" in text
    done = batchrun("estimate", *words, "--pilot", 4, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert stats(url)["requests"] == 8
    picked = query("SELECT DISTINCT row, sample FROM read_parquet(?)")
    assert (len(picked), {sample for _, sample in picked}) == (4, {0})
    cost = {line["variant"]: line["usd"]["standard"] for line in made["answers"]}
    assert cost[None] == pytest.approx(cost["gpt-4.1"] + cost["gpt-4.1-mini"])
    assert made["pilot"]["cost_usd"]["total"] == pytest.approx(made["spent_usd"] + cost[None])
    refused = batchrun("estimate", *words, "--pilot", 4, "--variant", "gpt-4.1")
    assert "--pilot sends rows of all variants" in refused.stderr
    assert batchrun(*_BASE, *words[5:]).returncode == 0
    assert stats(url)["requests"] == 120


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*_TWO, "--variant", "gpt-4.1-nano"), "no such variant; did you mean `gpt-4.1-mini`"),
        (("--model", "a", "--variant", "a"), "--variant a: there is no such variant; the job decl"),
        (("--model", "a", "--vary", "model=b,c"), "request.model is given one value, and expand."),
        (
            (*_TWO, "--vary", "model=b,c"),
            "several --model and --vary or --set model=… set the same",
        ),
        ((*_TWO, "--set", "model=x"), "several --model and --vary or --set model=… set the same"),
        (("--model", "a", "--model", "a"), 'there is another variant "a"'),
        (("--vary", "effort"), "write KEY=A,B, such as reasoning.effort=low,high"),
        (("--vary", "a=1", "--vary", "a=2"), "a is given twice; write all its values in one"),
        (("--vary", "model=a b,c"), "give each variant a name in [[variants]]"),
        (("--model", "a", "--samples", "0"), "a number from 1 to 10,000"),
        (("--model", "a", "--samples", "many"), "a number from 1 to 10,000"),
        ((*_TWO, "--model", "c", "--prompt-file", "none.txt"), "none.txt"),
    ],
)
def test_what_cannot_be_meant_is_said_and_nothing_is_sent(
    words: tuple[str, ...], said: str, rows: Callable[[int], None], batchrun: Run, tmp_path: Path
) -> None:
    rows(1)
    done = batchrun(*_BASE, *words, "--simulate")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_chosen_rows_are_sent_in_all_variants_and_samples(
    rows: Callable[[int], None], batchrun: Run, query: Query
) -> None:
    rows(20)
    words = (*_BASE, *_TWO, "--samples", 2, "--simulate")
    done = batchrun(*words, "--where", "level = 3", "--limit", 2)
    assert "where and limit: 2 of 20 rows done" in done.stderr, done.stderr
    assert query(_VARIANTS) == [("gpt-4.1", 4), ("gpt-4.1-mini", 4)]
    done = batchrun(*words, "--sample-rows", 3)
    assert done.returncode == 0, done.stderr
    picked = {row for (row,) in query("SELECT DISTINCT row FROM read_parquet(?)")} - {3, 8}
    assert len(picked) <= 3
    assert query(_VARIANTS) == [(name, 4 + 2 * len(picked)) for name in ("gpt-4.1", "gpt-4.1-mini")]
    assert batchrun(*words).returncode == 0
    _each_once(query, 20, 2, ("gpt-4.1", "gpt-4.1-mini"))


def test_a_bad_row_is_one_row_for_each_sample_and_variant(
    tmp_path: Path, batchrun: Run, query: Query
) -> None:
    lines = ['{"id": "q0", "question": "x"}', '{"id": "q1", "question": null}', "{"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    words = (*_BASE, *_TWO, "--samples", 2, "--simulate")
    refused = batchrun(*words)
    assert refused.returncode == 2
    assert "8 requests of 12 cannot be sent:" in refused.stderr
    assert refused.stderr.count("prompts.jsonl:") == 2
    done = batchrun(*words, "--skip-bad-rows")
    assert done.returncode == 4, done.stderr
    found = query("SELECT status, count(*), count(DISTINCT (sample, variant)) FROM read_parquet(?) "
                  "GROUP BY ALL ORDER BY 1")  # fmt: skip
    assert found == [("completed", 4, 4), ("invalid", 8, 4)]
    assert "12 rows, each once" in batchrun("verify", "run").stdout


def test_an_appended_input_gives_new_rows_one_number_for_all_their_samples(
    write_rows: Callable[..., Path], batchrun: Run, query: Query
) -> None:
    words = (*_TWO, "--prompt", "{{ q }}", "--samples", 2, "-o", "run", "--simulate")
    write_rows([{"id": name, "q": name} for name in ("a", "b", "c")], "one.jsonl")
    write_rows([{"id": name, "q": name} for name in ("d", "b", "e")], "two.jsonl")
    assert batchrun("run", "one.jsonl", *words, "--limit", 2).returncode == 0
    done = batchrun("run", "two.jsonl", *words, "--append")
    assert done.returncode == 0, done.stderr
    # More samples of the rows that this input holds; the others stay as they are.
    done = batchrun("run", "two.jsonl", *words[:4], *words[4:6], "--samples", 3, *words[8:])
    assert done.returncode == 0, done.stderr
    numbers = query("SELECT DISTINCT custom_id, row, count(*) FROM read_parquet(?) GROUP BY ALL")
    assert sorted(numbers) == [("a", 0, 4), ("b", 1, 6), ("d", 2, 6), ("e", 3, 6)]
    assert "22 rows, each once" in batchrun("verify", "run").stdout
