import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.cli.cost import cost
from batchrun.errors import ErrorKind, JobError
from batchrun.pricing.prices import Prices, tier_of
from batchrun.records import (
    Attempt,
    Failure,
    Layout,
    Outcome,
    Request,
    ToolCall,
    Totals,
    Usage,
)
from batchrun.reports.bill import cost_queries
from batchrun.reports.bill.cost import CostLine, Costs, RunCost, read_costs
from batchrun.reports.bill.cost_tables import show_costs
from batchrun.reports.report_queries import read_report
from batchrun.reports.report_sections import remarks
from batchrun.store.run_dir import RunDir
from tests.runs import column, response, run_record

AT = 1_795_000_000_000_000  # in November 2026


SPLIT = Layout(None, (column("split", pa.string()), column("hard", pa.bool_())))


def answered(
    row: int,
    usage: Usage,
    *,
    model: str | None = "gpt-4.1",
    asked: str | None = "gpt-4.1",
    tier: str | None = "default",
    via: str = "plain",
    carried: tuple[Any, ...] = ("train", True),
    before: tuple[Attempt, ...] = (),
    kind: str = "first",
    calls: tuple[ToolCall, ...] = (),
    named: bool = True,
    **changes: Any,
) -> Outcome:
    answer = response(
        id=f"resp_{row}" if named else None,
        model=model,
        service_tier=tier,
        tool_calls=calls,
        usage=usage,
        **{"usage_json": "{}", **changes},
    )
    attempt = Attempt(
        AT + row,
        1.0,
        kind,
        200,
        response_id=answer.id,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
    )
    request = Request(row, str(row), "a.jsonl", b"{}", f"{row:016x}", asked, None, carried)
    return Outcome(request, answer, (*before, attempt), "http://x", via)


def failed(row: int, *attempts: Attempt, status: str = "failed") -> Outcome:
    request = Request(row, str(row), "a.jsonl", b"{}", f"{row:016x}", "gpt-4.1", None, ())
    failure = Failure(ErrorKind.TIMEOUT, "no", None, None, status)
    return Outcome(request, failure, attempts, "http://x", "plain")


def saved(
    path: Path, *outcomes: Outcome, layout: Layout = SPLIT, part_rows: int = 4, **changes: Any
) -> Path:
    """A run directory of these outcomes, the last of them in the journal."""
    run_dir = RunDir.open(path)
    changes = {"state": "finished", "rows": len(outcomes), "started_at": AT, **changes}
    run_dir.save(run_record(layout, **changes))
    run_dir.start(part_rows=part_rows, part_bytes=1 << 26)
    for outcome in outcomes:
        run_dir.store(outcome)
    run_dir.close(seal=False)
    return path


def read(path: Path, **asked: Any) -> RunCost:
    (run,) = read_costs([path], **asked).runs
    return run


def costs(lines: tuple[CostLine, ...]) -> dict[str | None, float | None]:
    return {line.name: line.cost_usd for line in lines}


def _shown(costs: Costs, width: int = 80) -> str:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        show_costs(costs, stream)
    return stream.getvalue()


REFUSED = Attempt(AT, 1.0, "first", 429, ErrorKind.RATE_LIMIT, cost_usd=0.0)
LOST = Attempt(AT, 1.0, "first", None, ErrorKind.TIMEOUT)
SPENT = Attempt(AT, 1.0, "first", 200, input_tokens=500_000, output_tokens=0, response_id="old")
MILLION = Usage(1_000_000, output_tokens=1_000_000)  # $10 of gpt-4.1


def test_each_attempt_is_paid_by_its_kind(tmp_path: Path) -> None:
    run = read(
        saved(
            tmp_path / "run",
            answered(0, MILLION),
            answered(1, MILLION, before=(REFUSED,), kind="retry"),
            answered(2, MILLION, before=(SPENT,), kind="reask"),
            failed(3, LOST, status="no_answer"),
            failed(4, REFUSED),
            failed(5, status="invalid"),
        )
    )
    assert costs(run.by["attempt"]) == {"first": 11.0, "retry": 10.0, "reask": 10.0}
    assert costs(run.by["status"]) == {
        "completed": 31.0,
        "no_answer": None,
        "failed": 0.0,
        "invalid": 0.0,
    }
    assert (run.total.rows, run.total.attempts, run.total.unknown) == (6, 7, 1)
    assert run.total.cost_usd == 31.0
    assert [line.rows for line in run.by["status"]] == [3, 1, 1, 1]
    assert "1 attempt reported no usage" in run.notes[0]


def test_what_only_rows_say_is_that_of_the_answer_that_counted(tmp_path: Path) -> None:
    usage = Usage(1_000_000, 250_000, 500_000, 0)
    lost = Attempt(AT, 1.0, "first", 200, input_tokens=1_000_000, output_tokens=0)
    own: dict[str, Any] = {"model": "gpt-5.6-sol", "asked": "gpt-5.6-sol"}
    run = read(
        saved(
            tmp_path / "run",
            answered(0, usage, before=(lost,), kind="reask", **own),
            answered(1, usage, before=(lost,), kind="reask", named=False, **own),
        )
    )
    price = Prices({}).find("gpt-5.6-sol", None, AT)
    assert price is not None
    alone, before = price.cost(usage), price.cost(Usage(1_000_000, output_tokens=0))
    assert alone is not None
    assert before is not None
    assert run.total.cache_write_tokens == 1_000_000
    assert costs(run.by["attempt"]) == {
        "first": pytest.approx(2 * before),
        "reask": pytest.approx(2 * alone),
    }


def test_any_carried_column_groups_lines(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "run",
        answered(0, MILLION, carried=("train", True)),
        answered(1, MILLION, carried=("test", False)),
        answered(2, MILLION, carried=(None, True)),
        answered(3, MILLION, carried=("train", None)),
        answered(4, MILLION, carried=("train", True)),
    )
    assert costs(read(path, by=["split"]).by["split"]) == {"train": 30.0, "test": 10.0, None: 10.0}
    assert costs(read(path, by=["hard"]).by["hard"]) == {"true": 30.0, "false": 10.0, None: 10.0}
    assert costs(read(path, by=["row"]).by["row"])["4"] == 10.0
    assert costs(read(path, by=["via"]).by["via"]) == {"plain": 50.0}
    assert costs(read(path, by=["status"]).by["status (column)"]) == {"completed": 50.0}


def test_a_column_that_cannot_group_lines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "run", *(answered(row, MILLION) for row in range(3)))
    with pytest.raises(
        JobError, match=r"no column splt; did you mean `split`\? \(columns are split"
    ):
        read(path, by=["splt"])
    with pytest.raises(JobError, match="attempts holds list"):
        read(path, by=["attempts"])
    monkeypatch.setattr(cost_queries, "MOST_VALUES", 2)
    with pytest.raises(JobError, match="custom_id would make more than 2 groups"):
        read(path, by=["custom_id"])


def test_counts_that_cannot_be_do_not_spoil_the_sums(tmp_path: Path) -> None:
    absurd = Usage(2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1)
    below = Usage(-5, -7, -1, -9)
    run = read(saved(tmp_path / "run", *(answered(row, absurd) for row in range(9))))
    assert run.total.cost_usd is not None
    assert run.total.cost_usd > 1e6
    assert run.total.output_tokens == 9 * 2**40
    repaired = read(saved(tmp_path / "other", answered(0, MILLION), answered(1, below)))
    assert repaired.total.cost_usd == 10.0


def test_a_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    layout = Layout(None, (column("raw", pa.binary()),))
    path = saved(tmp_path / "run", answered(0, MILLION, carried=(b"\xff",)), layout=layout)
    with pytest.raises(JobError, match="raw holds binary, which is not text"):
        read(path, by=["raw"])


def test_tiers_are_those_of_the_answers_and_a_batch_is_one(tmp_path: Path) -> None:
    o3: dict[str, Any] = {"model": "o3", "asked": "o3"}
    run = read(
        saved(
            tmp_path / "run",
            answered(0, MILLION, **o3),
            answered(1, MILLION, tier="flex", **o3),
            answered(2, MILLION, tier=None, **o3),
            answered(3, MILLION, tier="default", via="batch", **o3),
            answered(4, MILLION, tier="scale", **o3),
        )
    )
    assert costs(run.by["tier"]) == {"standard": 20.0, "flex": 5.0, "batch": 5.0, "scale": 10.0}
    assert run.notes == ("there is no scale price for o3, so its standard one is used",)


def test_the_same_tokens_at_other_prices(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "run",
        answered(0, MILLION),
        answered(1, MILLION, model="house-model", asked="house-model"),
        failed(2, LOST),
    )
    found = read_costs([path], models=["o3", "gpt-4.1-mini", "o3"], tier="batch")
    assert found.what_if == ("at batch", "o3 at batch", "gpt-4.1-mini at batch")
    (run,) = found.runs
    assert run.total.what_if_usd == pytest.approx((5.0, 10.0, 2.0))
    assert found.caveat is not None
    assert "Another model counts the same text in other tokens" in found.caveat
    by_model = {line.name: line.what_if_usd for line in run.by["model"]}
    assert by_model["house-model"] == (None, 5.0, 1.0)
    assert read(path, models=["o3"]).total.what_if_usd == (20.0,)
    assert read(path, tier="standard").total.what_if_usd == (10.0,)
    assert read_costs([path]).caveat is None


def test_what_to_compare_with_must_be_known(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", answered(0, MILLION))
    with pytest.raises(
        JobError, match=r"no price is known for gpt-9\. .*\n  \[pricing.\"gpt-9\"\]"
    ):
        read(path, models=["gpt-9"])
    with pytest.raises(JobError, match="no tier bulk; known are standard, batch"):
        read(path, tier="bulk")
    with pytest.raises(JobError, match="not a run directory"):
        read(tmp_path)


def test_every_model_without_a_price_is_named_up_to_a_handful(tmp_path: Path) -> None:
    own = [answered(at, MILLION, model=f"own-{at}", asked=f"own-{at}") for at in range(8)]
    path = saved(tmp_path / "run", answered(9, MILLION), *own)
    notes = [note for note in read(path).notes if "no price" in note]
    assert [note.partition(",")[0] for note in notes[:5]] == [
        f"no price for own-{n}" for n in range(5)
    ]
    assert notes[5:] == ["no price for 3 more models: the sum leaves out 3 attempts"]
    assert "(no price for gpt-4.1, own-0, own-1, own-2, own-3 and 4 more)" in " ".join(
        remarks(read_report(path))
    )
    with pytest.raises(JobError, match=r"known for gpt-9, own-1\. Give each"):
        read(path, models=["gpt-9", "gpt-4.1", "own-1"])


def test_long_inputs_and_prices_of_their_time_are_priced_apart(tmp_path: Path) -> None:
    night = AT - AT % 86_400_000_000
    outcomes = []
    expected = 0.0
    for row in range(12):
        model = ("gpt-5.4", "gemini-2.5-pro", "deepseek-chat")[row % 3]
        usage = Usage((1_000, 199_999, 272_001, 300_000)[row % 4], 500, None, 1_000)
        outcome = answered(row, usage, model=model, asked=None)
        at = night + row * 7_200_000_000
        attempt = msgspec.structs.replace(outcome.attempts[0], started_at=at)
        outcomes.append(msgspec.structs.replace(outcome, attempts=(attempt,)))
        price = Prices({}).find(None, model, at)
        assert price is not None
        expected += price.cost(usage) or 0.0
    assert read(saved(tmp_path / "run", *outcomes)).total.cost_usd == pytest.approx(expected)


def test_prices_given_later_price_what_was_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = saved(tmp_path / "run", answered(0, MILLION, model="house", asked="house"))
    assert read(path).total.cost_usd is None
    (tmp_path / "batchrun").mkdir()
    file = tmp_path / "batchrun" / "prices.toml"
    file.write_text('[aliases]\nhouse = "gpt-4.1"\n')
    assert read(path).total.cost_usd == 10.0
    assert read(path).by["model"][0].priced_as == ("gpt-4.1",)
    file.write_text('[pricing."house"]\ninput = 1\noutput = 1\n')
    assert read(path).total.cost_usd == 2.0
    # What the run itself was asked for with comes first.
    job = {"pricing": {"house": {"input": 3.0, "output": 3.0}}, "aliases": {}}
    with_own = saved(tmp_path / "own", answered(0, MILLION, model="house", asked="house"), job=job)
    assert read(with_own).total.cost_usd == 6.0


def test_searches_are_paid_in_parts_and_in_the_journal(tmp_path: Path) -> None:
    def call(position: int, kind: str, item: str) -> ToolCall:
        return ToolCall(position, kind, None, None, None, None, "completed", item)

    calls = (
        call(0, "web_search_call", '{"action":{"type":"search"}}'),
        call(1, "web_search_call", '{"action":{"type":"open_page"}}'),
        call(2, "file_search_call", "{}"),
        call(3, "function_call", "{}"),
    )
    outcomes = [answered(row, MILLION, calls=calls) for row in range(6)]
    outcomes += [answered(9, MILLION, calls=calls, usage_json='{"tool_usage":{"web_search":{}}}')]
    usage = '{"tool_usage":{"web_search":{"num_requests":5}}}'
    outcomes += [answered(10, MILLION, calls=calls, usage_json=usage)]
    run = read(saved(tmp_path / "run", *outcomes), models=["gpt-4.1-nano"])
    assert (run.total.web_searches, run.total.file_searches) == (12, 8)
    assert run.total.cost_usd == pytest.approx(80 + 12 * 0.01 + 8 * 0.0025)
    own: dict[str, Any] = {"gpt-4.1": {"input": 1.0, "output": 1.0}}
    # What a token costs by contract leaves the list's price of a search as it is.
    paid = read(saved(tmp_path / "own", *outcomes, job={"pricing": own}))
    assert paid.total.cost_usd == pytest.approx(16.0 + 12 * 0.01 + 8 * 0.0025)
    own["gpt-4.1"] |= {"web_search": 5.0, "file_search": 0.0}
    given = read(saved(tmp_path / "given", *outcomes, job={"pricing": own}))
    assert given.total.cost_usd == pytest.approx(16.0 + 12 * 0.005)
    said = "there is no price for the searches that {} made, so they are not in the sum"
    assert given.notes == (said.format("gpt-4.1"),)
    assert run.notes == (said.format("gpt-4.1-nano"),)


def test_rows_sent_again_and_rows_no_longer_in_the_input_count_with_all_they_cost(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path / "run", failed(0, LOST), answered(1, MILLION))
    run_dir = RunDir.open(path)
    run_dir.finish()
    record = run_dir.record
    assert record is not None
    run_dir.save(msgspec.structs.replace(record, gone=Totals(rows=1)))
    run_dir.start(part_rows=4, part_bytes=1 << 26, replaces=True)
    again = answered(0, MILLION, before=(LOST,), kind="retry")
    run_dir.store(msgspec.structs.replace(again, replaces=True))
    live = read(path)
    run_dir.close(seal=True)
    for run in (live, read(path)):
        assert (run.total.rows, run.total.attempts) == (2, 3)
        assert costs(run.by["attempt"]) == {"first": 10.0, "retry": 10.0}
        assert any("1 row no longer in the input" in note for note in run.notes)


@pytest.mark.parametrize(
    ("state", "note"), [("running", "its last command was killed"), ("finished", None)]
)
def test_a_run_that_was_killed_says_so(tmp_path: Path, state: str, note: str | None) -> None:
    run = read(saved(tmp_path / "run", answered(0, MILLION), state=state))
    assert run.state == ("killed" if note else state)
    assert bool(run.notes) == bool(note)
    assert run.total.cost_usd == 10.0


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", answered(0, MILLION), state="running")
    run_dir = RunDir.open(path)
    run_dir.start(part_rows=4, part_bytes=1 << 26)
    run_dir.store(answered(1, MILLION))
    run = read(path)
    run_dir.close(seal=False)
    assert (run.state, run.total.cost_usd) == ("running", 20.0)
    assert run.notes[0].startswith("the run is still going on: these are the rows")


def test_an_empty_run_has_cost_nothing(tmp_path: Path) -> None:
    run = read(saved(tmp_path / "run"))
    assert (run.total.cost_usd, run.total.rows, run.by["model"]) == (0.0, 0, ())
    assert "$0.00" in _shown(read_costs([tmp_path / "run"]))


counts = st.none() | st.integers(0, 400_000)
tokens = st.builds(Usage, counts, counts, counts, counts, counts)
models = st.sampled_from(["gpt-4.1", "gpt-5.4-2026-03-05", "o3", "house-model", None])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            models,
            tokens,
            st.sampled_from(["default", "flex", "priority", None]),
            st.sampled_from(["plain", "batch"]),
        ),
        max_size=12,
    )
)
def test_each_breakdown_adds_up_to_what_the_rows_cost_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str | None, Usage, str | None, str]],
) -> None:
    outcomes = [
        answered(row, usage, model=model, tier=tier, via=via, asked=model)
        for row, (model, usage, tier, via) in enumerate(rows)
    ]
    prices = Prices({})
    apart = [
        price.cost(usage)
        for model, usage, tier, via in rows
        if (price := prices.find(model, model, AT, tier_of(tier, via)))
    ]
    run = read(saved(tmp_path_factory.mktemp("run") / "run", *outcomes), by=["split"])
    expected = sum(cost for cost in apart if cost is not None)
    for lines in (*run.by.values(), (run.total,)):
        assert sum(line.cost_usd or 0.0 for line in lines) == pytest.approx(expected, rel=1e-9)
        assert sum(line.attempts for line in lines) == len(rows)
        assert sum(line.unknown + line.unpriced for line in lines) == len(rows) - sum(
            cost is not None for cost in apart
        )


def test_the_table_is_at_most_as_wide_as_the_terminal_and_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b[31mred\u202e" + "m" * 90
    path = saved(
        tmp_path / "run",
        answered(0, MILLION, carried=("a\nb", True)),
        answered(1, MILLION, model=evil, asked=evil),
        answered(2, MILLION, model="gpt-4.1-2025-04-14"),
        simulated=True,
    )
    monkeypatch.chdir(tmp_path)
    path = Path("run")
    costs_read = read_costs([path], models=["gpt-5-mini", "o4-mini"], tier="flex", by=["split"])
    text = _shown(costs_read, 80)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "simulated, so nothing was paid" in text
    assert "cost: $20.00+?; simulated" in text
    assert "no price for" in text
    saved(tmp_path / "other", answered(0, MILLION))
    beside = _shown(read_costs([path, Path("other")], models=["o3"]), 80)
    assert all(len(line) <= 80 for line in beside.splitlines())
    assert "$20.00 of the total is of simulated runs and was not paid" in beside


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", answered(0, MILLION))
    other = saved(tmp_path / "other", answered(0, MILLION, model="o3"))
    said = CliRunner().invoke(cost, [str(path), str(other), "--model", "o3", "--by", "split"])
    assert said.exit_code == 0, said.output
    assert "$10.00" in said.output
    asked = [str(path), "--json", "--tier", "batch"]
    costs_read = json.loads(CliRunner().invoke(cost, asked).output)
    (run,) = costs_read["runs"]
    assert costs_read["what_if"] == ["at batch"]
    assert (run["total"]["cost_usd"], run["total"]["what_if_usd"]) == (10.0, [5.0])
    assert run["by"]["model"][0]["priced_as"] == ["gpt-4.1"]


def test_what_attempts_without_usage_may_cost_is_said_and_marks_each_sum(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", answered(0, MILLION), unknown_usd=0.0539)
    run = read(path, tier="batch")
    assert run.unknown_usd == 0.0539
    text = _shown(read_costs([path], tier="batch"))
    assert "cost: $10.00+?" in text
    assert "note: at most $0.0539 more for attempts whose cost is not known" in text
    assert [line.split()[-2] for line in text.splitlines() if "at batch   " in line] == ["$5.00+?"]
    assert [line.split()[2] for line in text.splitlines() if "as run" in line] == ["$10.00+?"]
    other = saved(tmp_path / "other", answered(0, MILLION), unknown_usd=0.5)
    both = read_costs([path, other], tier="batch")
    assert both.unknown_usd == pytest.approx(0.5539)
    assert _shown(both).count("$5.00+?") == 2
    assert _shown(both).count("$20.00+?") == 1


def test_what_if_is_marked_where_attempts_are_left_out_of_it(tmp_path: Path) -> None:
    unpriced = answered(1, MILLION, model="mine", asked="mine")
    lost = failed(2, LOST, status="no_answer")
    one = read(saved(tmp_path / "one", answered(0, MILLION), unpriced), tier="batch", models=["o3"])
    assert one.total.what_if_partly == (True, False)  # o3 has a price for the tokens of `mine`
    two = read(saved(tmp_path / "two", answered(0, MILLION), lost), tier="batch", models=["o3"])
    assert two.total.what_if_partly == (True, True)
    assert {line.name: line.what_if_partly for line in two.by["status"]} == {
        "completed": (False, False),
        "no_answer": (True, True),
    }


def test_no_column_of_what_if_is_lost_however_narrow_the_terminal(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", *(answered(row, MILLION) for row in range(2)))
    models = ["gpt-5-mini", "o3", "gpt-4.1-mini", "gpt-4.1-nano"]
    costs_read = read_costs([path], models=models, tier="batch", by=["source"])
    for width in (60, 80, 200):
        lines = _shown(costs_read, width).splitlines()
        assert max(map(len, lines[1:])) <= width
        heads = [lines[at + 1] for at, line in enumerate(lines) if line.startswith("By source")]
        for name in costs_read.what_if:
            assert sum(f"  {name}" in head for head in heads) == 1
        assert all("cost" in head for head in heads)
        plain = _shown(read_costs([path], models=models, tier="batch"), width).splitlines()
        assert any("do not fit beside it" in line for line in plain) == (width < 200)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    def names(*names: str) -> list[str]:
        folder = tmp_path / f"{len(names)}-{names[0]}"
        paths = [saved(folder / name, answered(0, MILLION)) for name in names]
        lines = _shown(read_costs(paths)).splitlines()
        assert lines[1].startswith("Runs in ")
        assert lines[1].endswith(folder.name)
        assert len(lines[1]) <= 80
        return [line.split("  ")[0] for line in lines[3 : 3 + len(names)]]

    assert names("a", "g200-simulated") == ["a", "g200-simulated"]
    long = "a-name-that-is-longer-than-thirty"
    assert names(f"{long}-1", f"{long}-2") == [f"…{long[-27:]}-1", f"…{long[-27:]}-2"]


def of_teams(folder: Path, nights: int = 7) -> list[Path]:
    """A run a night and one more, two models, three teams; in the last run nobody has a team."""
    outcomes = [
        answered(row, MILLION, carried=("abc"[row % 3], True), model=("gpt-4.1", "o3")[row % 2])
        for row in range(6)
    ]
    days = 86_400_000_000
    paths = []
    for number in range(nights):
        later = []
        for outcome in outcomes:
            at = outcome.attempts[0].started_at + number * days
            attempt = msgspec.structs.replace(outcome.attempts[0], started_at=at)
            later.append(msgspec.structs.replace(outcome, attempts=(attempt,)))
        paths.append(saved(folder / f"2026-11-{18 + number}-nightly-extraction", *later))
    without = Layout(None, (column("owner", pa.string()),))
    last = answered(0, MILLION, carried=("d",))
    return [*paths, saved(folder / "2026-11-25-by-hand", last, layout=without)]


def test_several_columns_group_all_runs_together_and_add_up(tmp_path: Path) -> None:
    paths = of_teams(tmp_path / "runs")
    found = read_costs(paths, by=["split", "started_at:week", "model"])
    assert found.grouped_by == ("split", "started_at:week", "model")
    groups = {line.values: (line.rows, line.ok, line.cost_usd) for line in found.groups}
    assert groups["a", "2026-W47", "gpt-4.1"] == (5, 5, 50.0)
    assert groups["b", "2026-W48", "o3"] == (2, 2, 20.0)
    assert groups[None, "2026-W47", "gpt-4.1"] == (1, 1, 10.0)
    assert len(groups) == 3 * 2 * 2 + 1
    assert sum(line.cost_usd or 0.0 for line in found.groups) == found.total.cost_usd == 430.0
    assert [line.values for line in found.groups][-1][0] is None
    assert found.runs[-1].notes == ("it has no column split: all its rows are (null) there",)
    for lines in found.by.values():
        assert sum(line.cost_usd or 0.0 for line in lines) == 430.0
    few = [paths[0], paths[-1]]
    by_run = read_costs(few, by=["run"]).groups
    assert [line.values for line in by_run] == [(str(path),) for path in few]
    by_kind = read_costs(few, by=["attempt", "split"]).groups
    assert {line.values for line in by_kind} == {("first", team) for team in ("a", "b", "c", None)}
    tiers = read_costs(few, by=["service_tier"]).groups
    assert [(line.values, line.usd_per_ok) for line in tiers] == [(("standard",), 10.0)]


@pytest.mark.parametrize(
    ("unit", "named"),
    [
        ("year", "2026"),
        ("month", "2026-11"),
        ("week", "2026-W47"),
        ("day", "2026-11-18"),
        ("hour", "2026-11-18 11:00"),
    ],
)
def test_dates_are_cut_in_utc_whatever_their_type(tmp_path: Path, unit: str, named: str) -> None:
    time = AT + 26 * 60_000_000  # 11:33 UTC
    text = "2026-11-18T13:33:00+02:00"
    layout = Layout(
        None,
        (
            column("text", pa.string()),
            column("naive", pa.timestamp("ns")),
            column("zoned", pa.timestamp("ms", "Asia/Tokyo")),
            column("day", pa.date32()),
        ),
    )
    carried = (text, time * 1_000, time // 1_000, 20_775)
    path = saved(tmp_path / "run", answered(0, MILLION, carried=carried), layout=layout)
    for name in ("started_at", "text", "naive", "zoned"):
        (line,) = read_costs([path], by=[f"{name}:{unit}"]).groups
        assert line.values == (named,)
    (line,) = read_costs([path], by=[f"day:{unit}"]).groups
    assert line.values == (named.replace(" 11:", " 00:"),)


def test_what_is_no_time_and_no_unit_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", answered(0, MILLION, carried=("soon", True)))
    with pytest.raises(JobError, match="no unit dya; did you mean `day`"):
        read(path, by=["started_at:dya"])
    with pytest.raises(JobError, match="hard holds bool, which is not a time; leave :day out"):
        read(path, by=["hard:day"])
    assert read_costs([path], by=["split:day"]).groups[0].values == (None,)
    layout = Layout(None, (column("split:day", pa.string()),))
    own = saved(tmp_path / "own", answered(0, MILLION, carried=("x",)), layout=layout)
    assert read_costs([own], by=["split:day"]).groups[0].values == ("x",)


def test_a_run_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "run", answered(0, MILLION))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"given more than once: .*run, run; give each run once"):
        read_costs([Path("run"), tmp_path / "run"])


def test_eight_runs_are_readable_at_80_columns(tmp_path: Path) -> None:
    paths = of_teams(tmp_path / "runs")
    lines = _shown(read_costs(paths, by=["split", "started_at:month"])).splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert lines[0].startswith("8 runs in ")
    assert lines[1] == "  cost: $430.00"
    (at,) = (at for at, line in enumerate(lines) if line.startswith("By split"))
    of_groups = lines[at + 1 :]
    assert of_groups[0].split() == [
        *("split", "started_at:month", "rows", "ok", "cost", "per", "ok", "row"),
    ]
    assert of_groups[1].split() == ["a", "2026-11", "14", "14", "$140.00", "$10.00"]
    assert of_groups[-1].split() == ["total", "43", "43", "$430.00", "$10.00"]
    plain = _shown(read_costs(paths)).splitlines()
    assert max(map(len, plain)) <= 80
    of_runs = plain[2 : plain.index("", 2)]
    assert len(of_runs) == 1 + 8 + 1
    assert of_runs[-1].split() == ["total", "43", "43", "43.0M", "43.0M", "$430.00"]
    assert [line for line in plain if line.startswith("By ")] == [
        *("By model", "By tier", "By status", "By attempt"),
    ]


def test_csv_adds_up_and_markdown_has_the_total(tmp_path: Path) -> None:
    paths = [*map(str, of_teams(tmp_path / "runs", nights=2))]
    asked = [*paths, "--by", "split", "--by", "ok", "--model", "o3"]
    done = CliRunner().invoke(cost, [*asked, "--format", "csv"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("\ufeff")
    rows = list(csv.DictReader(io.StringIO(done.output.removeprefix("\ufeff"))))
    assert [row["split"] for row in rows] == ["a", "b", "c", ""]
    assert {row["by ok"] for row in rows} == {"true"}
    assert sum(float(row["cost_usd"]) for row in rows) == 130.0
    assert sum(float(row["cost_usd o3"]) for row in rows) == 130.0
    assert sum(int(row["ok"]) for row in rows) == 13
    assert {row["is_partly"] for row in rows} == {"false"}
    of_runs = CliRunner().invoke(cost, [*paths, "--format", "csv"]).output
    assert len(of_runs.splitlines()) == 1 + 3
    said = CliRunner().invoke(cost, [*asked, "--format", "markdown"]).output.splitlines()
    assert said[0].startswith("| split | by ok | rows | ok | attempts |")
    total = "| total |  | 13 | 13 | 13 | 13,000,000 | 13,000,000 | $130.00 | $10.00 | $130.00 |"
    assert total in said
    both = CliRunner().invoke(cost, [*asked, "--json", "--format", "csv"])
    assert both.exit_code == 2
    as_json = json.loads(CliRunner().invoke(cost, [*asked, "--format", "json"]).output)
    assert as_json["total"]["cost_usd"] == 130.0
    assert as_json["grouped_by"] == ["split", "ok"]
    assert as_json["groups"][0]["values"] == ["a", "true"]


def test_csv_is_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", answered(0, MILLION, carried=("=1+1", True)))
    said = CliRunner().invoke(cost, [str(path), "--by", "split", "--format", "csv"]).output
    assert said.splitlines()[1].startswith('"\'=1+1",1,1,1,')


def test_prices_of_a_batch_by_contract(tmp_path: Path) -> None:
    outcomes = answered(0, MILLION, via="batch"), answered(1, MILLION)

    def priced(**own: float) -> list[float | None]:
        folder = tmp_path / "-".join(own)
        run = read(saved(folder, *outcomes, job={"pricing": {"gpt-4.1": own}}), tier="batch")
        by_tier = costs(run.by["tier"])
        return [by_tier["batch"], by_tier["standard"], *run.total.what_if_usd]

    assert priced(input=4.0, output=4.0) == [4.0, 8.0, 8.0]
    assert priced(input=4.0, output=4.0, batch_factor=0.25) == [2.0, 8.0, 4.0]
    assert priced(factor=0.5) == [2.5, 5.0, 5.0]
    assert priced(factor=0.5, batch_factor=0.1) == [0.5, 5.0, 1.0]


def test_an_expression_groups_rows_such_as_correct_ones(tmp_path: Path) -> None:
    outcomes = [
        answered(row, MILLION, carried=("abc"[row % 3], True), output_text=text)
        for row, text in enumerate(
            ['{"label": "a"}', '{"label": "b"}', '{"label": "x"}', "no JSON"]
        )
    ]
    path = saved(tmp_path / "run", *outcomes)
    is_correct = "output_text ->> '$.label' = split"
    found = read_costs([path], by=[is_correct, "custom_id = '0' OR variant IS NOT NULL"])
    assert {line.values: (line.rows, line.cost_usd) for line in found.groups} == {
        ("true", "true"): (1, 10.0),
        ("true", "false"): (1, 10.0),
        ("false", "false"): (1, 10.0),
        (None, "false"): (1, 10.0),
    }
    for wrong in ("splt = 'a'", "count(*)", "1; SELECT 2", "output_text ->>"):
        with pytest.raises(JobError, match="--by"):
            read(path, by=[wrong])
    assert path.exists()
