"""Leases of a plan, read in another process, are the requests of the whole reading: each once."""

import gzip
import json
import pickle
import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from batchrun.errors import InputError
from batchrun.executors.lease_book import remaining_of
from batchrun.executors.messages import FleetTick, Lease, decode_tick, encode
from batchrun.inputs import jsonl, rows
from batchrun.inputs.prompt_set import PinnedSource, PromptSet, find_source
from batchrun.job.job_file import load_job
from batchrun.job.sections import Job
from batchrun.records import BadRow, Request
from batchrun.runner.asked_rows import RowSelection
from batchrun.runner.cluster.leases import (
    PlannedRows,
    is_sent_again,
    lease_requests,
    one_worker_file,
    places_of,
    planned_rows,
    renumbered,
)
from batchrun.runner.plan import Plan, make_plan
from batchrun.runner.resume import numbered

Requests = list[Request | BadRow]
_ROWS = 43
_VARIANTS = [
    {"name": "plain", "drop": ["temperature"]},
    {"name": "loud", "request": {"instructions": "{{ variant }} {{ sample }}: {{ x }}"}},
]


def _row(number: int, prefix: str = "q") -> dict[str, Any]:
    row: dict[str, Any] = {"id": f"{prefix}{number}", "prompt": f"What is {number}? …", "x": number}
    return {**row, "temperature": 0.5} if number % 3 else row


def _lines(prefix: str = "q") -> bytes:
    """With all that may stand between rows, and rows that cannot be sent."""
    lines = [json.dumps(_row(number, prefix), ensure_ascii=False) for number in range(_ROWS)]
    lines[11], lines[30] = "{broken", json.dumps({"id": "none", "x": 1_000})
    lines[3] += "\n\n   \n"
    return b"\xef\xbb\xbf\n" + "\n".join(lines).encode() + b"\n\x1a"


def _table(prefix: str = "q") -> pa.Table:
    columns = {
        name: [_row(number, prefix).get(name) for number in range(_ROWS)] for name in _row(1)
    }
    price = [Decimal(number) / 4 for number in range(_ROWS)]
    return pa.table({**columns, "price": pa.array(price, pa.decimal128(9, 2))})


def _make(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A source of each kind, with the settings that it is read by."""
    mixed = folder / "mixed"
    for name in ("lang=de", "lang=en", "lang=fr"):
        (mixed / name).mkdir(parents=True)
    (mixed / "lang=de/a.jsonl").write_bytes(_lines("a"))
    pq.write_table(_table("b"), mixed / "lang=en/b.parquet", row_group_size=20)
    (mixed / "lang=fr/c.jsonl.gz").write_bytes(gzip.compress(_lines("c")))
    (folder / "lines.jsonl").write_bytes(_lines())
    (folder / "nameless.jsonl").write_bytes(_lines().replace(b'"id"', b'"no"'))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(_lines()))
    (folder / "mac.jsonl").write_bytes(_lines().replace(b"\n", b"\r"))
    many = [_row(number) for number in range(_ROWS)]
    (folder / "array.json").write_text(json.dumps(many, indent=1))
    (folder / "wrapped.json").write_text(json.dumps({"of": "us", "data": many}))
    pq.write_table(_table(), folder / "table.parquet", row_group_size=16)
    pq.write_table(_table(), folder / "small.parquet", row_group_size=3)
    several = {"expand.samples": 3, "variants": _VARIANTS}
    return {
        **{path.name: (path, {}) for path in sorted(folder.iterdir())},
        "samples": (folder / "lines.jsonl", {"expand.samples": 4}),
        "variants": (folder / "table.parquet", several),
        "mixed variants": (mixed, several),
        "where": (mixed, {"input.where": "x % 3 = 1"}),
        "types": (folder / "lines.jsonl", {"input.types": {"x": "string"}, "input.id": "x"}),
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, Path]]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: (_job(path, given), folder) for name, (path, given) in _make(folder).items()}


@contextmanager
def _few_rows_between_offsets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (rows, jsonl):
            patch.setattr(module, "OFFSETS_EVERY", 5)
        yield


def _job(path: Path, given: dict[str, Any]) -> Job:
    variants = given.pop("variants", None)
    base = {
        "input.skip_bad_rows": True,
        "request.model": "m",
        "endpoint.base_url": "http://localhost:1",
    }
    job = load_job(path, {**base, **given})
    if variants is None:
        return job
    return msgspec.convert({**msgspec.to_builtins(job), "variants": variants}, Job)


def _plan(job: Job, folder: Path, **asked: Any) -> Plan:
    path = folder / "no-run"
    return make_plan(job, find_source(job.input), None, path, RowSelection(**asked), in_parts=True)


def _sent(lease: Lease) -> Lease:
    """As it comes out of a message."""
    (one,) = decode_tick(encode(FleetTick(1, leases=(lease,)))).leases
    return one


def _pinned(plan: Plan) -> PinnedSource:
    pinned: PinnedSource = pickle.loads(pickle.dumps(plan.prompts.pinned(plan.layout)))  # noqa: S301
    return pinned


def _read(prompts: PromptSet, plan: Plan, lease: Lease) -> Requests:
    return list(renumbered(lease_requests(prompts, plan.layout, _sent(lease)), lease))


def _whole(plan: Plan) -> Requests:
    requests = plan.prompts.requests(plan.layout, plan.resumed.complete, plan.limit)
    return list(numbered(requests, plan.resumed))


@settings(max_examples=100)
@given(data=st.data())
@_few_rows_between_offsets()
def test_leases_hold_each_request_of_a_plan_once_as_the_whole_reading_gives_it(
    sources: dict[str, tuple[Job, Path]], data: st.DataObject
) -> None:
    job, folder = sources[data.draw(st.sampled_from(sorted(sources)))]
    asked = data.draw(st.sampled_from([{}, {"limit": 17}, {"sample_rows": 9}]))
    plan = _plan(job, folder, **asked)
    draw = random.Random(data.draw(st.integers(0, 1 << 30)))
    share = data.draw(st.sampled_from([0.0, 0.3, 0.97]))
    done = bytearray(one or draw.random() < share for one in plan.resumed.complete)
    again = bytearray(not one and draw.random() < 0.2 for one in done)
    plan = replace(plan, resumed=replace(plan.resumed, complete=done, again=again))
    if data.draw(st.booleans()):  # rows of another input stand before these
        known = [draw.choice((-1, row)) for row in range(plan.source_rows)]
        appended = replace(plan.resumed, next_row=1_000, stored_rows=array("q", known))
        plan = replace(plan, resumed=appended)
    prompts, planned, got = PromptSet.reopen(_pinned(plan), job), planned_rows(plan), Requests()
    expansion = plan.expansion
    assert planned.left == plan.to_complete if not share else True
    while (lease := planned.cut(draw.randint(1, 30))) is not None:
        read = _read(prompts, plan, lease)
        assert len(read) == remaining_of(lease) > 0
        places = list(lease_requests(prompts, plan.layout, lease))
        assert [is_sent_again(lease, expansion, one) for one in places] == [
            bool(again[expansion.number(one)]) for one in places
        ]
        if draw.random() < 0.3:  # its worker dies when some of it is complete
            stored = [one for one in read if draw.random() < 0.5]
            names = [(one.row, one.sample, one.variant) for one in stored]
            rest = planned.rest(lease, places_of(lease, expansion, names))
            left = [] if rest is None else _read(prompts, plan, rest)
            assert left == [one for one in read if one not in stored]
        got += read
    assert planned.left == 0
    assert got == _whole(plan)


def test_a_large_file_is_read_from_the_row_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("wb") as file:
        for number in range(7_777):
            file.write(json.dumps(_row(number)).encode() + b"\n" * (1 + number % 2))
    plan = _plan(_job(path, {}), tmp_path)
    (span,) = plan.prompts.file_spans()
    assert span.offsets is not None
    assert len(span.offsets.offsets) == len(span.offsets.lines) == 8
    whole, planned, at = _whole(plan), planned_rows(plan), 0
    prompts = PromptSet.reopen(_pinned(plan), plan_job := _job(path, {}))
    assert plan_job.input.path == str(path)
    while (lease := planned.cut(500)) is not None:
        assert lease.row - lease.offset_row < 1_000
        assert lease.rows <= 500
        assert _read(prompts, plan, lease) == whole[at : at + lease.rows]
        at += lease.rows
    assert at == 7_777


def test_parts_of_a_row_group_are_no_smaller_than_a_sixteenth_of_it(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"What is {number}?" for number in range(1_600)]})
    pq.write_table(table, tmp_path / "one-group.parquet")
    plan = _plan(_job(tmp_path / "one-group.parquet", {}), tmp_path)
    planned = planned_rows(plan)
    leases = list(iter(lambda: planned.cut(1), None))
    assert [lease.rows for lease in leases] == [100] * 16


def test_a_packed_file_is_one_lease(tmp_path: Path) -> None:
    path = tmp_path / "packed.jsonl.gz"
    path.write_bytes(gzip.compress(_lines()))
    planned = planned_rows(_plan(_job(path, {}), tmp_path))
    lease = planned.cut(1)
    assert lease is not None
    assert (lease.first, lease.rows, planned.left) == (0, _ROWS, 0)


def test_a_file_that_keeps_all_workers_but_one_waiting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "packed.jsonl.gz"
    rows = [json.dumps(_row(number)).encode() for number in range(2_000)]
    path.write_bytes(gzip.compress(b"\n".join(rows)))
    assert one_worker_file(_plan(_job(path, {}), tmp_path), 1) is None
    said = one_worker_file(_plan(_job(path, {}), tmp_path), 3)
    assert said is not None
    assert said.startswith("packed.jsonl.gz holds 2,000 of 2,000 rows")
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(b"\n".join(rows))
    assert one_worker_file(_plan(_job(plain, {}), tmp_path), 3) is None


def test_a_lease_spans_no_more_than_so_many_complete_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchrun.runner.cluster.leases.MOST_REQUESTS", 10)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(_lines())
    plan = _plan(_job(path, {}), tmp_path)
    complete = bytearray(b"\1") * _ROWS
    for row in (4, 11, 12, 40):
        complete[row] = 0
    plan = replace(plan, resumed=replace(plan.resumed, complete=complete))
    planned = planned_rows(plan)
    leases = list(iter(lambda: planned.cut(5), None))
    assert [(lease.row, lease.rows) for lease in leases] == [(4, 9), (40, 1)]


def test_a_file_that_has_changed_since_the_plan_is_an_error_for_a_lease(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(_lines())
    plan = _plan(_job(path, {}), tmp_path)
    lease = planned_rows(plan).cut(5)
    assert lease is not None
    prompts = PromptSet.reopen(_pinned(plan), _job(path, {}))
    path.write_bytes(_lines() + b"\n{}")
    with pytest.raises(InputError, match=r"lines\.jsonl: changed while it was being read"):
        _read(prompts, plan, lease)


def test_a_local_plan_notes_no_offsets(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(_lines())
    job = _job(path, {})
    plan = make_plan(job, find_source(job.input), None, tmp_path / "no-run")
    (span,) = plan.prompts.file_spans()
    assert span.offsets is None


def test_rows_are_leased_in_the_order_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(_lines())
    planned: PlannedRows = planned_rows(_plan(_job(path, {}), tmp_path))
    leases = list(iter(lambda: planned.cut(10), None))
    assert [lease.id for lease in leases] == [1, 2, 3, 4, 5]
    assert [lease.row for lease in leases] == [0, 10, 20, 30, 40]
