"""What a row is asked in each of its samples and variants."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.inputs.prompt_set import PromptSet, Survey, find_source
from batchrun.job.sections import InputJob, VariantJob
from batchrun.records import BadRow, Request

Rows = list[Request | BadRow]
Write = Callable[..., Path]


def read(
    path: Path,
    request: dict[str, Any],
    *variants: VariantJob,
    samples: int = 1,
    **input_job: Any,
) -> tuple[Survey, Rows]:
    """Surveys a prompt set, reads all its requests, and holds the two against each other."""
    job = InputJob(path=str(path), **input_job)
    prompts = PromptSet(find_source(job), job, request, samples=samples, variants=variants)
    numbers: list[int] = []
    survey = prompts.survey(None, on_body=lambda number, _body: numbers.append(number))
    rows = list(prompts.requests(survey.layout, bytearray(survey.rows)))
    assert [int(row.hash, 16) for row in rows] == list(survey.hashes)
    assert [prompts.expansion.number(row) for row in rows] == list(range(survey.rows))
    assert [isinstance(row, BadRow) for row in rows] == [bool(bad) for bad in survey.is_bad]
    good = [row for row in rows if isinstance(row, Request)]
    assert numbers == [prompts.expansion.number(row) for row in good]
    assert survey.body_bytes == sum(len(row.body) for row in good)
    assert survey.first == (good[0] if good else None)
    # Any of them alone is the same as among all.
    for number, row in enumerate(rows):
        others = bytearray(b"\1") * survey.rows
        others[number] = 0
        assert list(prompts.requests(survey.layout, others)) == [row]
    return survey, rows


def bodies(rows: Rows) -> list[dict[str, Any]]:
    return [json.loads(row.body) for row in rows if isinstance(row, Request)]


def test_samples_are_the_same_request(write: Write) -> None:
    survey, rows = read(write({"input": "x", "note": 1}, {"input": "y"}), {"model": "m"}, samples=3)
    assert (survey.rows, survey.source_rows, survey.ids) == (6, 2, None)
    assert [(row.row, row.sample, row.variant) for row in rows] == [
        (0, 0, None), (0, 1, None), (0, 2, None), (1, 0, None), (1, 1, None), (1, 2, None),
    ]  # fmt: skip
    assert len({row.hash for row in rows}) == 2
    assert [row.carried for row in rows] == [(1,)] * 3 + [(None,)] * 3


def test_the_request_gives_way_to_the_row_and_the_row_to_the_variant(write: Write) -> None:
    row = {"input": "x", "model": "row", "reasoning": {"effort": "low"}, "temperature": 0.3}
    survey, rows = read(
        write(row, {"input": "y"}),
        {"model": "job", "reasoning": {"summary": "auto"}, "temperature": 1, "top_p": 0.5},
        VariantJob("same"),
        VariantJob("other", request={"model": "v", "reasoning": {"effort": "high"}}),
        VariantJob("less", drop=("temperature", "reasoning.summary", "nothing")),
    )
    first = {"input": "x", "top_p": 0.5, "temperature": 0.3}
    assert bodies(rows)[:3] == [
        {**first, "model": "row", "reasoning": {"effort": "low", "summary": "auto"}},
        {**first, "model": "v", "reasoning": {"effort": "high", "summary": "auto"}},
        {"input": "x", "top_p": 0.5, "model": "row", "reasoning": {"effort": "low"}},
    ]
    said = "\n".join(survey.warnings)
    assert "variant other overrides settings of 1 row of 2" in said
    assert "variant less overrides settings of 1 row of 2" in said
    assert "variant less drops nothing, which no request has" in said
    assert "variant same" not in said


def test_templates_see_sample_and_variant_and_rows_keep_their_columns(write: Write) -> None:
    path = write({"q": "x", "sample": "s", "variant": "w"})
    request = {
        "input": "{{ q }} {{ sample }} {{ row['sample'] }}",
        "seed": "{{ 1000 + sample }}",
        "model": "m",
    }
    variant = VariantJob("v", request={"instructions": "{{ variant }} {{ row.variant }}"})
    _, rows = read(path, request, variant, samples=2)
    assert [(one["input"], one["seed"], one["instructions"]) for one in bodies(rows)] == [
        ("x 0 s", 1000, "v w"),
        ("x 1 s", 1001, "v w"),
    ]


def test_without_samples_and_variants_a_column_of_that_name_is_meant(write: Write) -> None:
    request = {"input": "{{ q }}", "seed": "{{ 1000 + sample }}", "model": "m"}
    _, rows = read(write({"q": "x", "sample": 5}, {"q": "y"}), request)
    assert [one["seed"] for one in bodies(rows)] == [1005, 1000]
    # The first sample of a run that grows is that of the run before.
    _, (row, *_) = read(write({"q": "y"}), request)
    _, (first, _) = read(write({"q": "y"}), request, samples=2)
    assert row.hash == first.hash


def test_a_run_under_the_older_hash_rule_keeps_its_hashes_in_variants(write: Write) -> None:
    """Rule 2 made another body of this row; a variant that changes nothing has its hash."""
    path = write({"input": "x", "reasoning": {"effort": "low"}}, {"input": "y"})
    job = InputJob(path=str(path))
    request = {"model": "m", "reasoning": {"summary": "auto"}}
    plain = PromptSet(find_source(job), job, request, 2).survey(None)
    newer = PromptSet(find_source(job), job, request).survey(None)
    variants = (VariantJob("a"), VariantJob("b", request={"model": "n"}))
    varied = PromptSet(find_source(job), job, request, 2, variants=variants).survey(None)
    assert plain.hashes[0] != newer.hashes[0]
    assert varied.hashes[::2] == plain.hashes
    assert set(varied.hashes[1::2]).isdisjoint(plain.hashes)


def test_a_variant_may_bring_the_template(write: Write, tmp_path: Path) -> None:
    long = VariantJob("long", request={"input": "Think. {{ q }}", "model": "a"})
    short = VariantJob("short", request={"input": "{{ q }}", "model": "a"})
    survey, rows = read(write({"q": "x", "input": "z"}), {}, long, short)
    assert [one["input"] for one in bodies(rows)] == ["Think. x", "x"]
    assert survey.sent == ("q",)
    pq.write_table(pa.table({"q": ["x"], "sample": [7]}), tmp_path / "p.parquet")
    _, rows = read(tmp_path / "p.parquet", {"seed": "{{ sample }}"}, long, samples=2)
    assert [one["seed"] for one in bodies(rows)] == [0, 1]


def test_what_one_variant_lacks_makes_its_requests_bad_alone(write: Write) -> None:
    path = write({"input": "x", "a": "1"}, {"input": "y"}, b"{")
    survey, rows = read(
        path,
        {},
        VariantJob("one", request={"model": "m"}),
        VariantJob("two", request={"model": "m", "instructions": "{{ a }}"}),
        VariantJob("three"),
        samples=2,
    )
    assert [(row.row, row.sample, row.variant) for row in rows if isinstance(row, BadRow)][:6] == [
        (0, 0, "three"), (0, 1, "three"),
        (1, 0, "two"), (1, 1, "two"), (1, 0, "three"), (1, 1, "three"),
    ]  # fmt: skip
    assert survey.bad_rows == 12
    assert [(one.row, one.message[:30]) for one in survey.problems] == [
        (0, "variant three: no model: give "),
        (1, "variant two: the template's co"),
        (1, "variant three: no model: give "),
        (2, "not JSON: Expecting property n"),
    ]


def test_what_is_carried_once_is_carried_with_every_request(write: Write) -> None:
    path = write({"input": "x", "n": 1}, {"input": "y", "n": 1e300})
    survey, rows = read(
        path, {"model": "m"}, VariantJob("a"), VariantJob("b"), types={"n": "int64"}
    )
    assert [(row.carried, isinstance(row, BadRow)) for row in rows] == [
        ((1,), False), ((1,), False), ((None,), True), ((None,), True),
    ]  # fmt: skip
    assert len(survey.problems) == 1
    assert survey.forms == {"Responses bodies": 1}


def test_what_samples_and_variants_hardly_mean_is_said(write: Write) -> None:
    path = write({"input": "x", "temperature": 0}, {"input": "y"})
    request = {"model": "m", "temperature": 1}
    survey, _ = read(path, request, samples=2)
    assert "2 samples are asked of 50% at temperature 0" in "\n".join(survey.warnings)
    survey, _ = read(path, {**request, "temperature": 0}, samples=2)
    assert "2 samples are asked at temperature 0" in "\n".join(survey.warnings)
    two = (
        VariantJob("a"),
        VariantJob("b", request={"model": "m"}),
        VariantJob("c", drop=("model",)),
    )
    survey, _ = read(path, request, *two)
    said = [one for one in survey.warnings if "the same requests" in one]
    assert said == ["the variants a and b send the same requests to the same endpoint"]
    survey, _ = read(path, request, VariantJob("a", request={"temprature": 1}))
    assert any(
        "variant a: request.temprature is not a known field" in one for one in survey.warnings
    )
