import datetime as dt
import io
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.errors import ErrorKind
from batchrun.records import (
    Attempt,
    Citation,
    Column,
    Failure,
    Layout,
    Outcome,
    Request,
    Response,
    ToolCall,
    Usage,
)
from batchrun.store.columns import (
    name_columns,
    own_columns,
    response_batch,
    response_schema,
    tool_call_batch,
    tool_call_schema,
)
from batchrun.store.journal import frame_of, read_outcomes

MakeColumn = Callable[..., Column]
Make = Callable[..., Outcome]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MAYBE_TEXT = st.none() | TEXT
COUNT = st.none() | st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e5)
DOLLARS = st.none() | st.floats(0, 1e9)
AT = st.integers(0, 4_000_000_000_000_000)
STATUS = st.none() | st.integers(100, 599)
KIND = st.sampled_from(list(ErrorKind))

ATTEMPTS = st.lists(
    st.builds(
        Attempt,
        AT,
        SECONDS,
        st.sampled_from(["first", "retry", "reask", "hedge"]),
        STATUS,
        st.none() | KIND,
        MAYBE_TEXT,
        MAYBE_TEXT,
        MAYBE_TEXT,
        MAYBE_TEXT,
        COUNT,
        COUNT,
        COUNT,
        DOLLARS,
    ),
    max_size=4,
).map(tuple)
FAILURES = st.builds(
    Failure, KIND, TEXT, MAYBE_TEXT, STATUS, st.sampled_from(["failed", "no_answer", "invalid"])
)
CALLS = st.builds(
    ToolCall,
    st.integers(0, 2**31 - 1),
    TEXT,
    MAYBE_TEXT,
    MAYBE_TEXT,
    MAYBE_TEXT,
    st.none() | st.booleans(),
    MAYBE_TEXT,
    TEXT,
)
RESPONSES = st.builds(
    Response,
    id=MAYBE_TEXT,
    status=st.sampled_from(["completed", "incomplete", "failed", "cancelled"]),
    model=MAYBE_TEXT,
    service_tier=MAYBE_TEXT,
    output=TEXT,
    output_text=MAYBE_TEXT,
    refusal=MAYBE_TEXT,
    reasoning_summary=MAYBE_TEXT,
    citations=st.lists(
        st.builds(Citation, TEXT, MAYBE_TEXT, MAYBE_TEXT, MAYBE_TEXT, COUNT, COUNT), max_size=3
    ).map(tuple),
    tool_calls=st.lists(CALLS, max_size=3).map(tuple),
    usage=st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT),
    usage_json=MAYBE_TEXT,
    truncated=st.booleans(),
    incomplete_reason=MAYBE_TEXT,
    reported_cost_usd=DOLLARS,
    failure=st.none() | FAILURES,
    output_parsed_ok=st.none() | st.booleans(),
    is_empty=st.booleans(),
)
CARRIED = st.tuples(
    MAYBE_TEXT,
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.floats(allow_nan=False),
    st.none() | st.lists(st.integers(0, 9), max_size=3),
)
REQUESTS = st.builds(
    Request,
    row=st.integers(0, 2**62),
    custom_id=TEXT,
    source=TEXT,
    body=TEXT.map(str.encode),
    hash=st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}"),
    model=MAYBE_TEXT,
    max_output_tokens=COUNT,
    carried=st.just(()) | CARRIED,
    sample=st.integers(0, 9),
    variant=MAYBE_TEXT,
    resume_id=st.none(),
)
OUTCOMES = st.builds(
    Outcome,
    REQUESTS,
    RESPONSES | FAILURES,
    ATTEMPTS,
    TEXT,
    st.sampled_from(["plain", "stream", "background"]),
    st.none() | SECONDS,
    DOLLARS,
    MAYBE_TEXT,
)


def through_the_journal(outcome: Outcome) -> Outcome:
    (back,) = read_outcomes(io.BytesIO(frame_of(outcome, 0)))
    assert isinstance(back, Outcome)
    return back


def micros(at: dt.datetime | None) -> int | None:
    return (
        None
        if at is None
        else (at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    )


def outcome_of(row: dict[str, Any], calls: list[dict[str, Any]], names: list[str]) -> Outcome:
    """An Outcome made of nothing but its rows."""
    failure = None
    if row["error_kind"] is not None:
        failure = Failure(
            ErrorKind(row["error_kind"]), row["error_message"], row["error_code"], None
        )
    result: Response | Failure | None = failure
    if failure is not None and row["output"] is None:
        result = msgspec.structs.replace(failure, status=row["status"])
    else:
        usage = Usage(*(row[name] for name in Usage.__struct_fields__))
        result = Response(
            row["response_id"],
            row["status"],
            row["model"],
            row["service_tier"],
            row["output"],
            row["output_text"],
            row["refusal"],
            row["reasoning_summary"],
            tuple(Citation(**citation) for citation in row["citations"]),
            tuple(
                ToolCall(**{name: call[name] for name in ToolCall.__struct_fields__})
                for call in calls
            ),
            usage,
            row["usage"],
            row["truncated"],
            row["incomplete_reason"],
            row["reported_cost_usd"],
            failure,
            row["output_parsed_ok"],
        )
    attempts = tuple(
        Attempt(**{**attempt, "started_at": micros(attempt["started_at"])})
        for attempt in row["attempts"]
    )
    request = Request(
        row["row"],
        row["custom_id"],
        row["source"],
        (row["request"] or "").encode(),
        row["request_hash"] or "",
        row["model_requested"],
        None,
        tuple(row[name] for name in names),
        row["sample"],
        row["variant"],
    )
    return Outcome(
        request,
        result,
        attempts,
        row["endpoint"] or "",
        row["via"] or "",
        row["first_token_s"],
        row["cost_usd"],
        row["priced_as"],
    )


def as_the_tables_tell_it(outcome: Outcome, carried: int) -> Outcome:
    """Without the facts that no column holds; why an answer is not ok is told as a failure."""
    replace = msgspec.structs.replace
    result = outcome.result
    if isinstance(result, Failure):
        result = replace(result, http_status=None, kind=ErrorKind(result.kind))
    else:
        failure = outcome.failure
        if failure is not None:
            failure = replace(failure, http_status=None, status="failed")
        result = replace(result, failure=failure, is_empty=False)
    request = replace(
        outcome.request,
        max_output_tokens=None,
        carried=outcome.request.carried or (None,) * carried,
    )
    return replace(outcome, request=request, result=result)


@settings(max_examples=400, deadline=None)
@given(outcome=OUTCOMES)
def test_an_outcome_through_journal_and_columns_comes_back_the_same(
    column: MakeColumn, outcome: Outcome
) -> None:
    layout = Layout(
        None,
        (
            column("text", pa.string()),
            column("number", pa.int64()),
            column("share", pa.float64()),
            column("list", pa.list_(pa.int64())),
        ),
    )
    back = through_the_journal(outcome)
    assert back == outcome
    (row,) = response_batch([back], layout, store_request=True).to_pylist()
    calls = tool_call_batch([back]).to_pylist()
    names = [c.name for c in layout.columns]
    assert outcome_of(row, calls, names) == as_the_tables_tell_it(outcome, len(names))
    last = outcome.attempts[-1] if outcome.attempts else None
    assert row["ok"] == outcome.ok
    assert row["http_status"] == (last and last.http_status)
    assert row["request_id"] == (last and last.request_id)
    assert row["latency_s"] == (last and last.latency_s)
    assert micros(row["started_at"]) == (last and outcome.attempts[0].started_at)
    assert micros(row["finished_at"]) == (last and last.started_at + round(last.latency_s * 1e6))
    answer = outcome.result if isinstance(outcome.result, Response) else None
    assert row["tool_call_count"] == (len(answer.tool_calls) if answer else None)
    assert [call["position"] for call in calls] == [
        call.position for call in (answer.tool_calls if answer else ())
    ]


def test_the_columns_are_in_the_documented_order() -> None:
    assert " ".join(response_schema(Layout(None, ())).names) == (
        "row custom_id sample variant source ok status truncated http_status error_kind "
        "error_code error_message incomplete_reason response_id request_id model "
        "model_requested service_tier endpoint via output_text refusal reasoning_summary "
        "reasoning_text api endpoint_name embedding turn_count output output_parsed_ok citations "
        "tool_call_count input_tokens cached_tokens "
        "cache_write_tokens output_tokens reasoning_tokens total_tokens usage cost_usd priced_as "
        "reported_cost_usd attempts started_at finished_at latency_s first_token_s request "
        "request_hash"
    )
    assert " ".join(tool_call_schema().names) == (
        "row custom_id sample variant response_id position type call_id name arguments "
        "arguments_valid status item turn result result_error result_latency_s"
    )


def test_carried_columns_are_after_source(column: MakeColumn) -> None:
    layout = Layout(None, (column("b", pa.int64()), column("a", pa.string())))
    assert response_schema(layout).names[4:8] == ["source", "b", "a", "ok"]


def test_the_request_is_left_out_where_it_is_not_to_be_stored(answered: Make) -> None:
    batch = response_batch([answered(0)], Layout(None, ()), store_request=False)
    assert batch["request"].to_pylist() == [None]


def test_numbers_that_do_not_fit_become_null(answered: Make) -> None:
    outcome = answered(0, usage=Usage(input_tokens=2**63, output_tokens=3))
    attempt = msgspec.structs.replace(outcome.attempts[0], http_status=99_999, input_tokens=2**63)
    outcome = msgspec.structs.replace(outcome, attempts=(attempt,))
    (row,) = response_batch([outcome], Layout(None, ()), store_request=True).to_pylist()
    assert (row["input_tokens"], row["output_tokens"], row["http_status"]) == (None, 3, None)
    assert row["attempts"][0]["http_status"] is None
    assert row["attempts"][0]["input_tokens"] is None
    assert row["attempts"][0]["request_id"] == "req_0"


MAP = pa.map_(pa.string(), pa.int64())


@pytest.mark.parametrize(
    ("kind", "stored", "plain", "value"),
    [
        (pa.timestamp("ns"), pa.int64(), 1_000, dt.datetime(1970, 1, 1, 0, 0, 0, 1)),  # noqa: DTZ001 - a column without a zone
        (pa.decimal128(10, 2), pa.string(), "1.50", Decimal("1.50")),
        (pa.decimal256(50, 2), pa.string(), "1.50", Decimal("1.50")),
        (pa.date32(), pa.int32(), 1, dt.date(1970, 1, 2)),
        (pa.float16(), pa.float64(), 0.5, 0.5),
        (pa.binary(), pa.binary(), b"\xff\x00", b"\xff\x00"),
        (MAP, MAP, [("a", 1)], [("a", 1)]),
        (MAP, MAP, [{"key": "a", "value": 1}], [("a", 1)]),
        (pa.map_(pa.string(), MAP), None, [("a", [("b", 2)])], [("a", [("b", 2)])]),
        (pa.list_(MAP), None, [[("a", 1)], None], [[("a", 1)], None]),
        (pa.struct({"m": MAP, "n": pa.int8()}), None, {"m": [("a", 1)], "n": 1}, None),
        (
            pa.list_(pa.struct({"t": pa.timestamp("us")})),
            pa.list_(pa.struct({"t": pa.int64()})),
            [{"t": 1}],
            [{"t": dt.datetime(1970, 1, 1, 0, 0, 0, 1)}],  # noqa: DTZ001 - a column without a zone
        ),
        (pa.list_(pa.int64(), 2), None, [1, 2], None),
        (pa.dictionary(pa.int32(), pa.string()), pa.string(), "a", "a"),
        (pa.large_string(), pa.string(), "a", "a"),
    ],
)
def test_carried_types_survive(
    column: MakeColumn,
    answered: Make,
    kind: pa.DataType,
    stored: pa.DataType | None,
    plain: Any,
    value: Any,
) -> None:
    layout = Layout(None, (column("c", kind, stored),))
    outcomes = [through_the_journal(answered(at, (v,))) for at, v in enumerate((plain, None))]
    outcomes.append(answered(2))  # a row that carries nothing
    batch = response_batch(outcomes, layout, store_request=True)
    assert batch.schema.field("c").type == kind
    assert batch["c"].to_pylist() == [plain if value is None else value, None, None]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "A", "row", "Row", "row_input", "a_2", "", "model", "tool_calls"])
    )
)
def test_no_two_names_are_alike_without_regard_to_case(columns: list[str]) -> None:
    names = [name.lower() for name in name_columns(columns)]
    assert len(set(names)) == len(columns)
    assert not set(names) & {*own_columns(), "tool_calls"}
    assert all(names)


def test_names_that_batchrun_uses_get_a_suffix() -> None:
    columns = ["Model", "model", "question", "Question", "row"]
    assert name_columns(columns) == [
        "Model_input",
        "model_input_2",
        "question",
        "Question_2",
        "row_input",
    ]
