"""Run directories with scores, as `run` and `score` leave them, made of given verdicts."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from batchrun.errors import ErrorKind
from batchrun.records import Attempt, Failure, Layout, Outcome, Request, Usage
from batchrun.store.run_dir import RunDir
from tests.runs import column, response, run_record

_HERE = Path(__file__).parent
# The names of two are those of columns that are calculated with.
_CARRIED = {name: pa.string() for name in ("topic", "question", "target")}
_LAYOUT = Layout(
    None,
    (*(column(*one) for one in _CARRIED.items()), column("tags", pa.list_(pa.string()))),
)
_KEY = [("custom_id", pa.string()), ("sample", pa.int32()), ("variant", pa.string())]
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        *_KEY,
        *((name, pa.string()) for name in ("scorer", "scorer_version", "metric")),
        ("value", pa.float64()),
        ("passed", pa.bool_()),
        *((name, pa.string()) for name in ("answer", "target", "reason", "explanation")),
        *((name, pa.string()) for name in ("metadata", "input_hash", "response_id")),
        ("judge_response_id", pa.string()),
        ("judge_cost_usd", pa.float64()),
        ("scored_at", pa.timestamp("us", "UTC")),
    ]
)
Verdict = float | None


def published(name: str) -> dict[str, str]:
    """Digits of verdicts that others computed, see make_samples.py."""
    found: dict[str, str] = json.loads((_HERE / f"{name}.json").read_text())["right"]
    return found


def outcome(row: int, custom_id: str, sample: int, variant: str | None, **given: Any) -> Outcome:
    """A stored row; `topic`, `cost_usd`, `text`, `failed`, `timed_out` may be given."""
    request = Request(
        row=row,
        custom_id=custom_id,
        source="prompts.jsonl",
        body=b"{}",
        hash=f"{row:016x}",
        model="gpt-4.1",
        max_output_tokens=None,
        carried=(given.get("topic"), f"What is {custom_id}?", "42", ["a", "b"]),
        sample=sample,
        variant=variant,
    )
    cost_usd = given.get("cost_usd", 0.002)
    at = 1_795_000_000_000_000
    # One that timed out before: nobody knows what it cost.
    late = Attempt(at, 0.5, "first", None, ErrorKind.TIMEOUT)
    before = (late,) if given.get("timed_out") else ()
    if given.get("failed"):
        attempts = (*before, Attempt(at, 0.5, "first", 500, cost_usd=0.0))
        failure = Failure(ErrorKind.SERVER_ERROR, "the server failed", None, 500)
        cost_usd = None if before else 0.0
        return Outcome(request, failure, attempts, "https://x.test/v1", "plain", None, cost_usd)
    name = f"resp_{custom_id}_{sample}_{variant}"
    counted = {"input_tokens": 10, "output_tokens": 5, "cost_usd": cost_usd}
    attempts = (*before, Attempt(at, 0.5, "first", 200, response_id=name, **counted))
    answer = response(
        id=name,
        model="gpt-4.1",
        service_tier="default",
        output_text=given.get("text", "42"),
        usage=Usage(10, 0, None, 5, None, 15),
        usage_json="{}",
    )
    return Outcome(
        request, answer, attempts, "https://x.test/v1", "plain", None, cost_usd, "gpt-4.1"
    )


def write_run(
    path: Path,
    values: Mapping[Any, Mapping[str, Sequence[Verdict]]],
    *,
    scorer: str = "exact",
    topics: Mapping[str, str] | None = None,
    answers: Mapping[tuple[str, int], str] | None = None,
    costs: bool = True,
    timed_out: Collection[str] = (),
    text: str = "42",
    record: Mapping[str, Any] | None = None,
    **scores: Any,
) -> Path:
    """A finished run: of each variant, of each question, the value of each sample.

    A null value is of a row that failed. `timed_out`: ids of which an attempt did. `record`: fields
    of `run.json`. `scores` goes to `write_scores`.
    """
    run_dir = RunDir.open(path)
    rows = {name: at for at, name in enumerate(next(iter(values.values())))}
    run_dir.save(run_record(_LAYOUT, **{"rows": len(rows), "state": "finished", **(record or {})}))
    run_dir.start(part_rows=10_000, part_bytes=64 << 20)
    for variant, questions in values.items():
        for custom_id, samples in questions.items():
            for sample, value in enumerate(samples):
                run_dir.store(
                    outcome(
                        rows.setdefault(custom_id, len(rows)),
                        custom_id,
                        sample,
                        variant,
                        topic=(topics or {}).get(custom_id),
                        failed=value is None,
                        text=text,
                        cost_usd=0.002 if costs else None,
                        timed_out=custom_id in timed_out,
                    )
                )
    run_dir.finish()
    run_dir.close()
    write_scores(path, values, scorer=scorer, answers=answers or {}, **scores)
    return path


def write_scores(
    path: Path,
    values: Mapping[Any, Mapping[str, Sequence[Verdict]]],
    *,
    scorer: str = "exact",
    metric: str = "value",
    answers: Mapping[tuple[str, int], str] | None = None,
    targets: Mapping[str, str] | None = None,
    version: str = "0123456789abcdef",
    more: Iterable[Mapping[str, Any]] = (),
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "row": at,
            "custom_id": custom_id,
            "sample": sample,
            "variant": variant,
            "scorer": scorer,
            "scorer_version": version,
            "metric": metric,
            "value": value,
            "passed": None if value is None else value >= 1,
            "answer": None if value is None else (answers or {}).get((custom_id, sample)),
            "target": (targets or {}).get(custom_id, "42"),
            "response_id": None if value is None else f"resp_{custom_id}_{sample}_{variant}",
        }
        for variant, questions in values.items()
        for at, (custom_id, samples) in enumerate(questions.items())
        for sample, value in enumerate(samples)
    ]
    folder = path / "scores" / scorer
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([*rows, *more], SCHEMA)
    pq.write_table(table, folder / "scores.parquet")


def digits(text: str) -> list[Verdict]:
    """`101` as values; `-` is a row without one."""
    return [None if letter == "-" else float(letter) for letter in text]


def questions(texts: Mapping[str, str]) -> dict[str, list[Verdict]]:
    """Of each question its samples, as digits."""
    return {name: digits(text) for name, text in texts.items()}


def as_struct(kind: type[Any], text: str) -> Any:
    """What a command printed as JSON."""
    return msgspec.json.decode(text, type=kind)
