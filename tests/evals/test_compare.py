"""`batchrun compare` on run directories, and as a library on tables."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchrun as library
from batchrun.evals.compare import Comparisons
from batchrun.scoring.statistics import holm, mcnemar_p, two_sided_p
from tests.evals.scored_runs import as_struct, published, questions, write_run, write_scores
from tests.scoring.mean_errors import mean_error

Run = Callable[..., subprocess.CompletedProcess[str]]
BASE, NEW = "6b_verification", "175b_finetuning"


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods as four variants of one run."""
    values = {
        method: questions({str(at): digit for at, digit in enumerate(text)})
        for method, text in published("gsm8k_verdicts").items()
    }
    return write_run(tmp_path_factory.mktemp("gsm8k") / "run", values, scorer="number")


def test_two_methods_of_gsm8k_have_their_published_errors(batchrun: Run, gsm8k: Path) -> None:
    words = ("compare", gsm8k, "--variant", BASE, "--variant", NEW)
    done = batchrun(*words, "--format", "json")
    assert done.returncode == 0, done.stderr
    (line,) = as_struct(Comparisons, done.stdout).lines
    assert line.se == pytest.approx(0.0144, abs=5e-5)
    assert line.unpaired_se == pytest.approx(0.0188, abs=5e-5)
    assert line.p == pytest.approx(0.0027, abs=5e-5)
    assert line.unpaired_p == pytest.approx(0.021, abs=5e-4)
    assert (line.pairs, line.gained, line.lost, line.flips) == (1319, 152, 209, 361)
    assert line.mcnemar_p == mcnemar_p(152, 209)
    assert line.detectable == pytest.approx(2.8 * (line.se or 0))
    assert len(line.first_flips) == 10
    shown = batchrun(*words).stdout
    assert "-0.043  0.014" in shown
    assert "0.0027" in shown
    assert "10 of 361; --flips FILE has them all" in shown
    latex = batchrun(*words, "--format", "latex").stdout
    assert r"175b\_finetuning & 1,319 & 0.390 & 0.347 & -0.043 & 0.014 &" in latex


def test_each_variant_is_compared_with_the_first_and_corrected(gsm8k: Path) -> None:
    found = library.compare(gsm8k, variants=[NEW, BASE, "175b_verification"])
    assert [(line.base, line.other) for line in found.lines] == [
        (NEW, BASE),
        (NEW, "175b_verification"),
    ]
    corrected = holm([line.p or 0 for line in found.lines])
    assert [line.p_holm for line in found.lines] == corrected
    assert len(library.compare(gsm8k).lines) == 3  # all others, where none is named


def test_two_runs_are_paired_by_their_ids(batchrun: Run, tmp_path: Path) -> None:
    first = {"a": "1", "b": "0", "c": "1", "d": "1", "x": "1"}
    second = {"d": "0", "b": "1", "a": "1", "c": "-", "y": "0"}  # in another order
    write_run(tmp_path / "old", {None: questions(first)})
    write_run(tmp_path / "new", {None: questions(second)})
    done = batchrun("compare", "old", "new", "--format", "json")
    found = as_struct(Comparisons, done.stdout)
    (line,) = found.lines
    assert (line.pairs, line.gained, line.lost) == (3, 1, 1)
    assert line.difference == 0
    assert "1 question only in old, left out" in found.notes
    assert "1 question only in new, left out" in found.notes
    assert any("1 question is not scored in both old and new" in note for note in found.notes)
    zero = as_struct(
        Comparisons,
        batchrun("compare", "old", "new", "--missing", "zero", "--format", "json").stdout,
    )
    assert (zero.lines[0].pairs, zero.lines[0].lost) == (4, 2)


def test_runs_with_the_same_variants_are_compared_variant_by_variant(
    batchrun: Run, tmp_path: Path
) -> None:
    texts = {"one": ("1100", "1010"), "two": ("1001", "1111")}
    for name, (first, second) in texts.items():
        values = {"a": first, "b": second}
        made = {
            variant: questions({f"q{at}": digit for at, digit in enumerate(text)})
            for variant, text in (values.items() if name == "one" else [*values.items()][::-1])
        }
        write_run(tmp_path / name, made)
    done = batchrun("compare", "one", "two", "--format", "json", "--flips", "flips.parquet")
    assert done.returncode == 0, done.stderr
    lines = as_struct(Comparisons, done.stdout).lines
    assert [(line.base, line.other, line.difference) for line in lines] == [
        ("one a", "two a", 0), ("one b", "two b", 0.5)
    ]  # fmt: skip
    p_values = holm([line.p or 0 for line in lines])
    assert [line.p_holm for line in lines] == pytest.approx(p_values)
    flips = pq.read_table(tmp_path / "flips.parquet")
    assert flips.group_by("base").aggregate([([], "count_all")]).num_rows == 2
    one = batchrun("compare", "one", "two", "--variant", "b", "--format", "json").stdout
    assert [line.base for line in as_struct(Comparisons, one).lines] == ["one b"]
    few = batchrun("compare", "one", "two", "--format", "latex", "--columns", "difference,p").stdout
    assert few.count(r"\begin{tabular}{lrr}") == 2
    assert "flipped" not in few


def test_a_difference_of_samples_is_one_of_questions() -> None:
    base = {"a": "1100", "b": "1111", "c": "0000", "d": "1000"}
    other = {"a": "1110", "b": "11", "c": "0001", "d": "1000"}
    tables = [
        pa.Table.from_pylist(
            [
                {"custom_id": name, "sample": at, "value": float(digit)}
                for name, text in texts.items()
                for at, digit in enumerate(text)
            ]
        )
        for texts in (base, other)
    ]
    (line,) = library.compare(*tables).lines
    error = mean_error([0.25, 0, 0.25, 0])
    assert (line.difference, line.se) == pytest.approx((error.mean, error.se))
    assert line.p == pytest.approx(two_sided_p(error.mean / (error.se or 1), 3))
    assert line.mcnemar_p is line.gained is None  # of one sample alone
    assert line.flips == 2


def test_groups_and_clusters(batchrun: Run, tmp_path: Path) -> None:
    names = [f"q{at}" for at in range(24)]
    topics = {name: f"t{at // 6}" for at, name in enumerate(names)}
    values = {
        "base": questions({name: str(at % 2) for at, name in enumerate(names)}),
        "new": questions({name: str(int(at // 6 % 2 == 0)) for at, name in enumerate(names)}),
    }
    write_run(tmp_path / "run", values, topics=topics)
    done = batchrun("compare", "run", "--by", "topic", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["by"], float(row["difference"])) for row in rows] == [
        ("t0", 0.5),
        ("t1", -0.5),
        ("t2", 0.5),
        ("t3", -0.5),
    ]
    (line,) = library.compare(tmp_path / "run", cluster="topic").lines
    differences = [int(at // 6 % 2 == 0) - at % 2 for at in range(24)]
    error = mean_error(differences, list(topics.values()))
    assert line.clusters == 4
    assert line.se == pytest.approx(error.se)


def test_all_flips_go_to_a_file(batchrun: Run, gsm8k: Path, tmp_path: Path) -> None:
    words = ("compare", gsm8k, "--variant", BASE, "--variant", NEW, "--flips", "flips.parquet")
    done = batchrun(*words)
    assert done.returncode == 0, done.stderr
    flips = pq.read_table(tmp_path / "flips.parquet").to_pylist()
    texts = published("gsm8k_verdicts")
    expected = [at for at in range(1319) if texts[BASE][at] != texts[NEW][at]]
    assert [int(flip["custom_id"]) for flip in flips] == expected
    assert {flip["base"] for flip in flips} == {BASE}
    assert all(flip["base_right"] + flip["other_right"] == 1 for flip in flips)
    inside = batchrun(*words[:-1], gsm8k / "flips.parquet")
    assert inside.returncode == 2
    assert not (gsm8k / "flips.parquet").exists()


def test_flips_show_targets_and_answers(batchrun: Run, tmp_path: Path) -> None:
    for name, digit, answer in (("old", "1", "42"), ("new", "0", "41\x1b[2J")):
        values = {None: questions({"a": digit, "b": "1"})}
        write_run(tmp_path / name, values, answers={("a", 0): answer})
    done = batchrun("compare", "old", "new", "--flips", "flips.parquet")
    assert r"a          42      right  42          wrong  41\x1b[2J" in done.stdout
    (flip,) = pq.read_table(tmp_path / "flips.parquet").to_pylist()
    assert (flip["base_answers"], flip["other_answers"]) == (["42"], ["41\x1b[2J"])


def test_flips_of_long_answers_show_verdicts_alone(batchrun: Run, tmp_path: Path) -> None:
    calls = '[{"name": "spotify_play", "arguments": {"artist": "Taylor Swift", "minutes": 20}}]'
    for name, digit in (("old", "1"), ("new", "0")):
        values = {None: questions({"a": digit, "b": "1"})}
        answers = {(one, 0): calls for one in "ab"}
        write_run(tmp_path / name, values, answers=answers)
    done = batchrun("compare", "old", "new")
    said = " ".join(done.stdout.split())
    assert "flipped (--flips FILE has targets and answers) custom_id base other a right" in said


def test_what_does_not_differ_has_no_interval_of_width_0(batchrun: Run, tmp_path: Path) -> None:
    values = {name: questions({f"q{at}": "1" for at in range(30)}) for name in ("a", "b")}
    write_run(tmp_path / "run", values)
    done = batchrun("compare", "run", "--format", "json")
    (line,) = as_struct(Comparisons, done.stdout).lines
    assert (line.p, line.low, line.high, line.mcnemar_p) == (1.0, None, None, 1.0)
    said = " ".join(batchrun("compare", "run").stdout.split())
    assert "no score differs; a difference in up to 9.5% of the questions" in said


def test_all_of_the_same_difference_prove_nothing_by_t(tmp_path: Path) -> None:
    values = {"a": questions({"q": "1", "r": "1"}), "b": questions({"q": "0", "r": "0"})}
    (line,) = library.compare(write_run(tmp_path / "run", values)).lines
    assert (line.difference, line.p, line.low) == (-1, None, None)
    assert line.mcnemar_p == 0.5


def test_other_versions_of_a_rule_are_said(tmp_path: Path) -> None:
    values = {None: questions({"a": "1", "b": "0"})}
    for name, version in (("old", "1" * 16), ("new", "2" * 16)):
        write_scores(write_run(tmp_path / name, values), values, version=version)
    found = library.compare(tmp_path / "old", tmp_path / "new")
    assert any("different versions of the rule" in note for note in found.notes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["two", "--variant", "a", "--variant", "c"], "there is no variant c; its variants are a"),
        (["two", "--variant", "a"], "one variant alone cannot be compared"),
        (["plain"], "one variant alone cannot be compared"),
        (["two", "plain"], "choose one with --variant; its variants are a, b"),
        (["two", "plain", "--variant", "a"], "plain: there is no variant a"),
        (["two", "plain", "other", "--variant", "a", "--variant", "b"], "give one --variant"),
        (["plain", "other"], 'share no custom_id: the first are "q" and "other"'),
        (["plain", "relabelled"], '"q" has the target "42" in plain and "43" in relabelled'),
        (["plain", "rescored"], "no scorer has scored all runs"),
        (["plain", "failed"], "no question is scored in both plain and failed"),
        (["plain", "plain"], "given more than once"),
        (["two", "--by", "topik"], "did you mean `topic`?"),
        (["two", "--by", "model_requested", "--scorer", "exakt"], "did you mean `exact`?"),
        (["two", "--by", "variant"], 'variant differs between the answers to "q"'),
    ],
)
def test_what_cannot_be_compared_is_said(
    batchrun: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    values = {None: questions({"q": "1", "r": "0"})}
    write_run(tmp_path / "plain", values)
    write_run(tmp_path / "two", {"a": values[None], "b": values[None]})
    write_run(tmp_path / "other", {None: questions({"other": "1"})})
    write_run(tmp_path / "relabelled", values, targets={"q": "43", "r": "42"})
    write_run(tmp_path / "rescored", values, scorer="number")
    write_run(tmp_path / "failed", {None: questions({"q": "-", "r": "-"})})
    done = batchrun("compare", *words)
    assert done.returncode == 2, done.stdout
    assert said in done.stderr
    assert done.stdout == ""


def test_json_says_what_was_asked(batchrun: Run, gsm8k: Path) -> None:
    words = ("compare", gsm8k, "--variant", BASE, "--variant", NEW, "--level", "0.9")
    found = json.loads(batchrun(*words, "--format", "json").stdout)
    assert (found["level"], found["missing"], found["by"]) == (0.9, "leave", None)
    markdown = batchrun(*words, "--format", "markdown").stdout
    assert "90 % interval" in markdown
