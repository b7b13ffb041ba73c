"""`batchrun metrics` on run directories, and as a library on tables."""

import csv
import io
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import batchrun as library
from batchrun.errors import JobError
from batchrun.evals.metrics import Metrics
from batchrun.reports.bill.cost import read_costs
from batchrun.scoring.statistics import majority, t_interval, wilson_interval
from tests.evals.scored_runs import (
    as_struct,
    published,
    questions,
    write_run,
    write_scores,
)
from tests.scoring.mean_errors import mean_error

Run = Callable[..., subprocess.CompletedProcess[str]]


def table(values: dict[str, str], **columns: Any) -> pa.Table:
    """Of each question its samples, as digits; a column by question where given."""
    rows = [
        {
            "custom_id": name,
            "sample": sample,
            "value": value,
            **{column: of[name] for column, of in columns.items()},
        }
        for name, samples in questions(values).items()
        for sample, value in enumerate(samples)
    ]
    return pa.Table.from_pylist(rows)


def test_tau_bench_has_its_published_pass_rates(batchrun: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run", {None: questions(published("tau_bench_rewards"))})
    done = batchrun("metrics", "run", "--at", "1,2,3,4", "--format", "json")
    assert done.returncode == 0, done.stderr
    (line,) = as_struct(Metrics, done.stdout).lines
    assert [round(rate.hat.value, 3) for rate in line.passes if rate.hat] == [
        *(0.420, 0.273, 0.220, 0.200)
    ]
    assert (line.questions, line.samples, line.scored) == (50, 200, 200)
    shown = batchrun("metrics", "run").stdout
    assert "0.420  0.052  [0.321, 0.526]" in shown
    assert "pass^4" in shown
    assert "0.200 [0.110, 0.336]" in shown


def test_samples_are_not_pooled_as_independent() -> None:
    """40 answers of 10 questions that always agree say no more than 10 answers."""
    values = {f"q{at}": "1111" if at % 2 else "0000" for at in range(10)}
    (line,) = library.metrics(table(values)).lines
    error = mean_error([0.0, 1.0] * 5)
    assert line.se == pytest.approx(error.se)
    assert (line.low, line.high) == pytest.approx(wilson_interval(error, 40, 0.95))
    assert line.within == 0
    assert line.se_of_many == pytest.approx(error.se)  # more samples would not help


def test_rows_that_failed_are_counted_and_bounded(batchrun: Run, tmp_path: Path) -> None:
    """8 of 9 right are no 88.9 % where a tenth row failed."""
    values = {f"q{at}": text for at, text in enumerate(["1"] * 8 + ["0", "-"])}
    write_run(tmp_path / "run", {None: questions(values)})
    done = batchrun("metrics", "run")
    said = "the mean is between 0.800 and 0.900 if the rest were all wrong or all right"
    assert f"9 of 10 scored; {said}" in " ".join(done.stdout.split())
    (line,) = library.metrics(tmp_path / "run", missing="zero").lines
    assert line.mean == pytest.approx(0.8)
    assert (line.scored, line.samples, line.questions) == (9, 10, 10)
    assert "the others count as 0" in " ".join(
        batchrun("metrics", "run", "--missing", "zero").stdout.split()
    )


def test_an_interval_at_100_percent_has_a_width() -> None:
    (line,) = library.metrics(table({f"q{at}": "1" for at in range(30)})).lines
    assert line.method == "wilson"
    assert line.low is not None
    assert 0.8 < line.low < 0.95
    # Scores that need not be 0 or 1 have one too, where they do not vary.
    alike = pa.table({"custom_id": ["a", "b", "c"], "value": [0.5] * 3})
    (line,) = library.metrics(alike).lines
    assert line.low is not None
    assert line.low < 0.5


def test_every_interval_without_a_width_is_said() -> None:
    values = table({f"q{at}": "11" for at in range(8)})
    for method in ("t", "bootstrap"):
        found = library.metrics(values, method=method)
        (line,) = found.lines
        assert line.low == line.high == line.mean == 1
        said = (
            "scores: all questions have the same score, pass@2, pass^2, so the "
            f"{method} interval has no width; that does not mean that there is no error"
        )
        assert said in found.notes
    # Only of what is the same for all.
    found = library.metrics(table({"a": "11", "b": "10", "c": "01"}), method="bootstrap")
    (said,) = (note for note in found.notes if "no width" in note)
    assert "the same pass@2, so the" in said
    assert not [note for note in library.metrics(values).notes if "no width" in note]


def test_each_method_is_its_formula(batchrun: Run, tmp_path: Path) -> None:
    values = {f"q{at}": "1" if at % 3 else "0" for at in range(40)}
    write_run(tmp_path / "run", {None: questions(values)})
    error = mean_error([float(text) for text in values.values()])
    expected = {
        "auto": wilson_interval(error, 40, 0.9),
        "wilson": wilson_interval(error, 40, 0.9),
        "t": t_interval(error, 0.9),
    }
    for method, ends in expected.items():
        done = batchrun("metrics", "run", "--method", method, "--level", "0.9", "--format", "json")
        (line,) = as_struct(Metrics, done.stdout).lines
        assert (line.low, line.high) == pytest.approx(ends)
    done = batchrun("metrics", "run", "--method", "bootstrap")
    assert "bootstrap: 10,000 draws, seed 1" in done.stdout
    assert batchrun("metrics", "run", "--method", "bootstrap").stdout == done.stdout


def test_clusters_widen_what_belongs_together(batchrun: Run, tmp_path: Path) -> None:
    texts = {f"q{at}": "11" if at // 6 % 2 else "00" for at in range(48)}
    topics = {name: f"topic {at // 6}" for at, name in enumerate(texts)}
    write_run(tmp_path / "run", {None: questions(texts)}, topics=topics)
    done = batchrun("metrics", "run", "--cluster", "topic", "--format", "json")
    (line,) = as_struct(Metrics, done.stdout).lines
    error = mean_error([mean(map(float, text)) for text in texts.values()], list(topics.values()))
    assert line.clusters == 8
    assert line.se == pytest.approx(error.se)
    assert (line.low, line.high) == pytest.approx(wilson_interval(error, 96, 0.95))
    assert "clusters" in batchrun("metrics", "run", "--cluster", "topic").stdout
    # A question without a cluster is its own, and never one with another of that name.
    few = {"a": "1", "b": "0", "c": "1"}
    of = {"a": "b", "b": None, "c": "b"}
    (line,) = library.metrics(table(few, cluster=of), cluster="cluster").lines
    assert line.clusters == 2
    (line,) = library.metrics(table(few, cluster=of), cluster="cluster", method="bootstrap").lines
    assert line.method == "bootstrap"


def test_lines_by_a_column(batchrun: Run, tmp_path: Path) -> None:
    texts = {f"q{at}": "1" if at % 4 else "0" for at in range(12)}
    topics = {name: "law" if at < 4 else "art" for at, name in enumerate(texts)}
    topics.pop("q11")
    write_run(tmp_path / "run", {None: questions(texts)}, topics=topics)
    done = batchrun("metrics", "run", "--by", "topic", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["by"], row["questions"], row["mean"]) for row in rows] == [
        ("art", "7", str(5 / 7)),
        ("law", "4", "0.75"),
        ("", "1", "1.0"),
    ]
    assert "(null)" in batchrun("metrics", "run", "--by", "topic").stdout


def test_variants_cost_and_latency(batchrun: Run, tmp_path: Path) -> None:
    values = {
        name: questions({f"q{at}": text for at, text in enumerate(texts)})
        for name, texts in (("mini+low", ["11", "10"]), ("big", ["00", "0-"]))
    }
    write_run(tmp_path / "run", values)
    found = library.metrics(tmp_path / "run")
    mini, big = sorted(found.lines, key=lambda line: line.variant != "mini+low")
    assert mini.cost_usd == pytest.approx(0.008)
    assert mini.usd_per_1000 == pytest.approx(2)
    assert mini.usd_per_right == pytest.approx(0.008 / 3)
    assert big.usd_per_right is None  # none is right
    assert mini.latency_p50_s == 0.5
    assert (big.samples, big.scored) == (4, 3)
    shown = batchrun("metrics", "run", env={"COLUMNS": "200"}).stdout
    assert "$2.00" in shown
    assert "0.500 s" in shown


def test_what_answers_cost_is_partly_unknown(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {None: questions({"a": "1", "b": "1"})}, costs=False)
    (line,) = library.metrics(tmp_path / "run").lines
    assert (line.cost_usd, line.unpriced, line.usd_per_1000) == (None, 2, None)


def test_attempts_of_unknown_cost_mark_the_cost_of_their_rows(
    batchrun: Run, tmp_path: Path
) -> None:
    """One row was answered after a time-out, another one never: both may cost more."""
    values = {None: questions({"a": "1", "b": "0", "c": "-", "d": "-"})}
    write_run(tmp_path / "run", values, timed_out=["b", "c"], record={"rows": 4})
    found = library.metrics(tmp_path / "run")
    (line,) = found.lines
    assert line.cost_usd == pytest.approx(0.004)
    assert (line.unpriced, line.usd_per_1000, line.usd_per_right) == (2, None, None)
    assert "the cost of 2 rows is not known, or not all of it" in found.notes
    shown = batchrun("metrics", "run", env={"COLUMNS": "200"}).stdout
    assert " $0.004+? " in shown
    assert "+?" in batchrun("cost", "run").stdout.partition("\n  ")[2].partition("\n")[0]


def test_questions_with_fewer_samples_are_left_out_and_counted(
    batchrun: Run, tmp_path: Path
) -> None:
    texts = {"a": "1101", "b": "10--", "c": "0011"}
    write_run(tmp_path / "run", {None: questions(texts)})
    done = batchrun("metrics", "run", "--at", "2,4,8", "--format", "json")
    found = as_struct(Metrics, done.stdout)
    two, four, eight = found.lines[0].passes
    assert [rate.left_out for rate in (two, four, eight)] == [0, 1, 3]
    assert eight.at is None
    assert four.at is not None
    assert four.at.value == 1
    assert any("pass@8 leaves out 3 questions" in note for note in found.notes)


def test_questions_without_any_score_are_left_out_and_counted_too(tmp_path: Path) -> None:
    texts = {"a": "11", "b": "1-", "c": "--", "d": "--"}
    found = library.metrics(write_run(tmp_path / "run", {None: questions(texts)}), at=[1, 2])
    (line,) = found.lines
    assert [(rate.k, rate.left_out) for rate in line.passes] == [(1, 2), (2, 3)]
    assert any("pass@1 leaves out 2 questions" in note for note in found.notes)
    zero = library.metrics(tmp_path / "run", at=[1, 2], missing="zero").lines[0]
    assert [rate.left_out for rate in zero.passes] == [0, 0]


def test_a_majority_is_counted_over_all_samples() -> None:
    """A reducer that keeps the first sample alone would find half of it."""
    texts = {"a": "0111", "b": "0011", "c": "1000"}
    answers: dict[str, list[str | None]] = {
        "a": ["1", "7", "7", "7"],
        "b": ["1", "1", "7", "7"],
        "c": ["7", None, "8", "9"],
    }
    rows = [
        {"custom_id": name, "sample": at, "value": float(text[at]), "answer": answers[name][at]}
        for name, text in texts.items()
        for at in range(4)
    ]
    (line,) = library.metrics(pa.Table.from_pylist(rows)).lines
    expected = mean(
        majority(zip(answers[name], map(float, text), strict=True)) for name, text in texts.items()
    )
    assert line.majority is not None
    assert line.majority.value == pytest.approx(expected)
    assert line.mean == pytest.approx((0.75 + 0.5 + 0.25) / 3)


def test_several_metrics_and_scorers(batchrun: Run, tmp_path: Path) -> None:
    values = {None: questions({"a": "1", "b": "0"})}
    run = write_run(tmp_path / "run", values, scorer="exact")
    more = [
        {
            "row": at,
            "custom_id": name,
            "sample": 0,
            "scorer": "mine",
            "metric": "length",
            "value": 10.0 + at,
            "passed": True,
            "response_id": f"resp_{name}_0_None",
        }
        for at, name in enumerate(("a", "b"))
    ]
    write_scores(run, values, scorer="mine", more=more)
    found = library.metrics(run)
    assert [line.name for line in found.lines] == ["exact", "mine", "mine/length"]
    length = found.lines[2]
    assert (length.mean, length.method) == (10.5, "t")
    assert length.if_rest_wrong is None  # a length is no share
    assert {line.scorer for line in library.metrics(run, scorers=["mine"]).lines} == {"mine"}
    done = batchrun("metrics", "run", "--method", "wilson")
    assert done.returncode == 2
    assert "mine/length has scores outside of 0 to 1" in done.stderr


def test_a_score_of_an_older_answer_does_not_count(batchrun: Run, tmp_path: Path) -> None:
    values = {None: questions({"a": "1", "b": "1", "c": "0"})}
    run = write_run(tmp_path / "run", values)
    stale = {
        "row": 3,
        "custom_id": "d",
        "sample": 0,
        "scorer": "exact",
        "metric": "value",
        "value": 1.0,
        "passed": True,
        "response_id": "resp_older",
    }
    write_scores(run, {None: questions({"a": "1", "b": "1"})}, more=[{**stale, "custom_id": "c"}])
    done = batchrun("metrics", "run")
    said = " ".join(done.stdout.split())
    assert "1 score is for an older answer and left out; batchrun score run" in said
    assert "2 of 3 scored" in said


def test_answers_that_wait_for_their_score_are_never_wrong(batchrun: Run, tmp_path: Path) -> None:
    """One was asked for again after it was scored, one had failed then, one is of a new row."""
    run = write_run(tmp_path / "run", {None: questions({**dict.fromkeys("abcde", "1"), "f": "-"})})
    seen: dict[str, Any] = {"row": 9, "sample": 0, "scorer": "exact", "metric": "value"}
    older = {**seen, "custom_id": "c", "value": 0.0, "passed": False, "response_id": "resp_older"}
    failed = {**seen, "custom_id": "d", "reason": "failed"}
    write_scores(run, {None: questions({"a": "1", "b": "0", "f": "-"})}, more=[older, failed])
    done = batchrun("metrics", "run", "--missing", "zero", "--format", "json")
    found = as_struct(Metrics, done.stdout)
    (line,) = found.lines
    assert line.mean == pytest.approx(1 / 3)  # of a, b and f
    assert (line.samples, line.scored, line.waiting, line.questions) == (6, 2, 3, 3)
    assert (line.if_rest_wrong, line.if_rest_right) == pytest.approx((1 / 6, 4 / 6))
    assert found.notes == (
        "1 score is for an older answer and left out; batchrun score run scores the new ones",
        "2 answers are not scored yet and left out; batchrun score run scores them",
        "exact: 2 of 6 scored; 3 left out until they are scored, the others count as 0",
    )
    (line,) = library.metrics(run).lines
    assert (line.mean, line.waiting) == (0.5, 3)
    # If a function gave no score, by whatever metric, scoring again would not change that.
    none = {**seen, "custom_id": "d", "response_id": "resp_d_0_None"}
    before = {**seen, "custom_id": "e"}  # and it had failed then
    few = {None: questions(dict.fromkeys("abc", "1"))}
    write_scores(run, few, metric="f1", more=[none, before])
    (line,) = library.metrics(run, missing="zero").lines
    assert (line.name, line.scored, line.waiting) == ("exact/f1", 3, 1)
    assert line.mean == pytest.approx(3 / 5)


def test_figures_over_a_part_of_the_rows_say_so(batchrun: Run, tmp_path: Path) -> None:
    """Whatever ended the run: else those of the first tenth of the input look final."""
    values = {None: questions({f"q{at}": "1" if at % 2 else "0" for at in range(4)})}
    so_far = "these are the rows that are complete so far"
    for record, said in (
        ({"rows": 4}, None),
        ({"rows": 1_000, "state": "stopped"}, f"996 of 1,000 rows have no outcome yet: {so_far}"),
        ({"rows": 9, "state": "failed"}, f"5 of 9 rows have no outcome yet: {so_far}"),
        ({"rows": 9, "state": "limited", "asked": 4}, f"5 of 9 rows were not asked for: {so_far}"),
        (
            {"rows": 9, "state": "interrupted", "asked": 6, "again": 1},
            (
                "5 of 9 rows have no outcome yet (3 not asked for); 1 row still to be sent again, "
                f"included as before: {so_far}"
            ),
        ),
        (
            {"rows": 9, "state": "running"},  # and no process writes to it
            f"the last command was killed; 5 of 9 rows have no outcome yet: {so_far}",
        ),
    ):
        run = write_run(tmp_path / str(len(list(tmp_path.iterdir()))), values, record=record)
        expected = [said] if said else []
        assert [one for one in library.metrics(run).notes if so_far in one] == expected, record
        if record.get("state") != "limited":  # a bill lacks nothing then
            notes = read_costs([run]).runs[0].notes
            assert [one for one in notes if so_far in one] == expected, record
    for command in (("metrics",), ("compare", "0"), ("cost",)):
        done = batchrun(*command, "1")
        assert "996 of 1,000 rows have no outcome yet" in " ".join(done.stdout.split()), command


def test_a_value_that_is_no_number_is_none() -> None:
    values = pa.table({"custom_id": ["a", "b", "c"], "value": [1.0, math.nan, math.inf]})
    (line,) = library.metrics(values).lines
    assert (line.scored, line.samples) == (1, 3)


def test_requirements(batchrun: Run, tmp_path: Path) -> None:
    values = {
        "v1.0": questions({"a": "1", "b": "1", "c": "1", "d": "0"}),
        "v2": questions({"a": "1", "b": "0", "c": "0", "d": "0"}),
    }
    write_run(tmp_path / "run", values, scorer="exact")
    for text, code in (
        ("exact.v1.0>=0.75", 0),
        ("exact.v1.0>0.75", 1),
        ("exact.v2<=0.25", 0),
        ("exact >= 0.3", 1),
        ("exact>=0.2", 0),
    ):
        done = batchrun("metrics", "run", "--require", text)
        assert done.returncode == code, (text, done.stderr)
        assert ("does not hold: the mean of run exact v" in done.stderr) == bool(code)
        assert "0.75" in done.stdout  # the figures stand all the same
    for text, said in (
        ("exact", "write SCORER>=NUMBER"),
        ("exact>=much", "write SCORER>=NUMBER"),
        ("exakt>=0.5", "did you mean `exact"),
        ("exact.v3>=0.5", "exact.v2"),
    ):
        done = batchrun("metrics", "run", "--require", text)
        assert done.returncode == 2
        assert said in done.stderr
    # Metrics have dots in their names, as variants do.
    write_scores(tmp_path / "run", values, scorer="py", metric="acc.norm")
    for text, code in (
        ("py/acc.norm>=0.2", 0),
        ("py/acc.norm>=0.3", 1),
        ("py/acc.norm.v1.0>=0.75", 0),
        ("py/acc.norm.v2>0.25", 1),
        ("py/acc>=0", 2),
    ):
        done = batchrun("metrics", "run", "--require", text)
        assert done.returncode == code, (text, done.stderr)
    # What is not scored is not as required.
    write_scores(tmp_path / "run", {"v1.0": questions({"a": "-"})})
    assert batchrun("metrics", "run", "--require", "exact>=0").returncode == 1


def test_formats_hold_the_same_figures(batchrun: Run, tmp_path: Path) -> None:
    texts = {f"q{at}": "10" if at % 3 else "11" for at in range(30)}
    values = {name: questions(texts) for name in ("a_b", "50%&<b>")}
    write_run(tmp_path / "run", values)
    found = batchrun("metrics", "run", "--format", "json").stdout
    lines = json.loads(found)["lines"]
    rows = list(csv.DictReader(io.StringIO(batchrun("metrics", "run", "--format", "csv").stdout)))
    assert [float(row["mean"]) for row in rows] == [line["mean"] for line in lines]
    assert [float(row["pass_hat_2"]) for row in rows] == [
        line["passes"][0]["hat"]["value"] for line in lines
    ]
    latex = batchrun("metrics", "run", "--format", "latex").stdout
    assert r"\toprule" in latex
    assert r"a\_b & 30 & 60 & 60 & 0.667 & 0.044 & [" in latex
    assert r"50\%\&\textless{}b\textgreater{} & 30" in latex
    assert r"pass\textasciicircum{}2" in latex
    widths = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 1
    few = batchrun("metrics", "run", "--format", "latex", "--columns", "pass@2, interval").stdout
    assert "variant & pass@2 & 95 \\% interval \\\\" in few
    one = batchrun("metrics", "run", "--format", "markdown", "--columns", "pass@1,pass@2").stdout
    assert "| variant | pass@1 | pass@2 |" in one
    for form in ("csv", "json"):
        refused = batchrun("metrics", "run", "--format", form, "--columns", "mean")
        assert (refused.returncode, refused.stdout) == (2, "")
    refused = batchrun("metrics", "run", "--columns", "mean,SEM")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert 'there is no "SEM"; did you mean `SE`?' in refused.stderr
    markdown = batchrun("metrics", "run", "--format", "markdown").stdout
    assert "| 50%&amp;&lt;b> | 30 | 60 |" in markdown
    table_lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table_lines}) == 1


def test_several_runs_stand_side_by_side(batchrun: Run, tmp_path: Path) -> None:
    for name, text in (("one", "1"), ("two", "0")):
        write_run(tmp_path / name, {None: questions({"a": text, "b": "1"})})
    done = batchrun("metrics", "one", "two")
    assert done.stdout.index("one") < done.stdout.index("two")
    assert "1.000" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere"),
        (["run", "--scorer", "exakt"], "did you mean `exact`?"),
        (["run", "--by", "topik"], "did you mean `topic`?"),
        (["run", "--by", "tags"], "there is no column tags"),
        (["run", "--cluster", "topik"], "did you mean `topic`?"),
        (["run", "--cluster", "response_id"], "cannot be a cluster of questions"),
        (["run", "--level", "95"], "is not between 0 and 1"),
        (["run", "--at", "two"], "give numbers of samples"),
        (["run", "--at", "0"], "k of pass@k is a number of samples, from 1"),
        (["bare"], "nothing is scored yet; batchrun score bare"),
        (["run", "run"], "given more than once"),
    ],
)
def test_what_cannot_be_is_said(batchrun: Run, tmp_path: Path, words: list[str], said: str) -> None:
    write_run(tmp_path / "run", {None: questions({"a": "11", "b": "01"})})
    bare = write_run(tmp_path / "bare", {None: questions({"a": "1"})})
    (bare / "scores" / "exact" / "scores.parquet").unlink()
    done = batchrun("metrics", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(JobError, match="needs the column value"):
        library.metrics(pa.table({"custom_id": ["a"]}))
    with pytest.raises(JobError, match="cannot be read"):
        library.metrics(pa.table({"custom_id": ["a"], "value": ["right"]}))
    with pytest.raises(JobError, match="no run is given"):
        library.metrics()
    with pytest.raises(JobError, match="did you mean `wilson`"):
        library.metrics(pa.table({"custom_id": ["a"], "value": [1]}), method="wilsen")


def test_a_single_question_has_no_interval(batchrun: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run", {None: questions({"a": "101"})})
    done = batchrun("metrics", "run")
    assert "a single question has no standard error; an interval needs two" in " ".join(
        done.stdout.split()
    )


def test_figures_are_those_of_duckdb(tmp_path: Path) -> None:
    """The same mean and error by one query over the file of scores, as anybody would write it."""
    texts = {f"q{at}": format(at * 7 % 16, "04b") for at in range(90)}
    run = write_run(tmp_path / "run", {None: questions(texts)})
    (line,) = library.metrics(run).lines
    query = (
        "SELECT avg(s), stddev_samp(s) / sqrt(count(*)) FROM (SELECT avg(value) AS s FROM "  # noqa: S608
        f"'{run}/scores/exact/scores.parquet' GROUP BY custom_id)"
    )
    expected = duckdb.connect().execute(query).fetchall()[0]
    assert (line.mean, line.se) == pytest.approx(expected)
