"""Money from the command line: misspelt models, old price lists, and the bill of several runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import STDOUT, CompletedProcess, Popen
from typing import Any

import pytest

from batchrun.formats.amounts import known_usd
from tests.waiting import HANG_S

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]

# Commands with a list in which nothing was checked since 2025, as a package that was never updated
# has it: one after the other, each with the folder of its user's prices.
_OLD_LIST = """
import json, os, re, sys
from genai_prices import data_snapshot
from batchrun.cli.main import main
snapshot = data_snapshot.get_snapshot()
for some in [*snapshot.providers, *(one for each in snapshot.providers for one in each.models)]:
    if some.price_comments:
        some.price_comments = re.sub("202[6-9]-", "2025-", some.price_comments)
data_snapshot.set_custom_snapshot(snapshot)
for folder, words in json.loads(sys.argv[1]):
    os.environ["XDG_CONFIG_HOME"] = folder
    sys.argv[:] = ["batchrun", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
    print("\\036", flush=True)
"""


def test_a_misspelt_model_under_a_cap_is_answered_by_the_name_that_was_meant(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(3))
    ask = ("run", source, "--prompt", "{{ question }}", "--simulate", "-o", "run")
    done = batchrun(*ask, "--model", "gpt-6-lunna", "--max-cost", "1")
    assert done.returncode == 2
    assert done.stderr.index("Did you mean gpt-6-luna?") < done.stderr.index("[pricing.")
    assert not (tmp_path / "run").exists()
    assert batchrun(*ask, "--model", "gpt-6-luna", "--max-cost", "1").returncode == 0

    # What the message offers to paste works too.
    pasted = done.stderr.partition("tokens:\n")[2].partition("or take")[0]
    (tmp_path / "batchrun").mkdir()
    (tmp_path / "batchrun" / "prices.toml").write_text(pasted)
    again = ("run", source, *ask[2:-1], "other", "--model", "gpt-6-lunna", "--max-cost", "1")
    done = batchrun(*again, env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_a_price_for_what_an_alias_stands_for_is_offered_and_works_where_it_is_pasted(
    tmp_path: Path, write_rows: Any, questions: Any, batchrun: Run
) -> None:
    source = write_rows(questions(2))
    job = '[input]\npath = "{}"\n[request]\nmodel = "house"\ninput = "{{{{ question }}}}"\n'
    job = job.format(source) + '[limits]\nmax_cost_usd = 1\n[aliases]\n"house" = "no-such"\n'
    (tmp_path / "job.toml").write_text(job)
    done = batchrun("run", "job.toml", "--simulate", "-o", "run")
    assert done.returncode == 2
    assert "house is an alias of no-such: if that is wrong, correct it" in done.stderr
    pasted = done.stderr.partition("tokens:\n")[2].partition("or take")[0]
    assert pasted.split()[0] == '[pricing."no-such"]'
    # Without a cap the rows are sent, and all that speaks of their cost names the same table.
    free = job.replace("max_cost_usd = 1", "")
    (tmp_path / "free.toml").write_text(free)
    estimated = batchrun("estimate", "free.toml", "-o", "free").stdout
    done = batchrun("run", "free.toml", "--simulate", "-o", "free")
    assert done.returncode == 0, done.stderr
    priced = batchrun("prices", "house", "--job", "free.toml")
    for said in (estimated, batchrun("cost", "free").stdout, priced.stdout + priced.stderr):
        words = " ".join(said.split())
        assert "an alias of no-such" in words
        assert '[pricing."no-such"]' in words
        assert '[pricing."house"]' not in words

    (tmp_path / "batchrun").mkdir()
    (tmp_path / "batchrun" / "prices.toml").write_text(pasted)
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    done = batchrun("run", "job.toml", "--simulate", "-o", "home", env=home)
    assert done.returncode == 0, done.stderr
    assert "unknown" not in batchrun("cost", "free", env=home).stdout
    (tmp_path / "priced.toml").write_text(job + pasted)
    done = batchrun("run", "priced.toml", "--simulate", "-o", "run")
    assert done.returncode == 0, done.stderr


def test_an_old_price_list_is_warned_of_wherever_its_prices_count(
    tmp_path: Path, write_rows: Any, questions: Any, begin: Begin, batchrun: Run
) -> None:
    source = write_rows(questions(2))
    ask = (source, "--prompt", "{{ question }}", "--model", "gpt-4.1", "--simulate", "-o", "run")
    assert batchrun("run", *ask).returncode == 0

    (tmp_path / "own" / "batchrun").mkdir(parents=True)
    own = '[pricing."gpt-4.1"]\ninput = 1.0\noutput = 4.0\n'
    (tmp_path / "own" / "batchrun" / "prices.toml").write_text(own)
    new = (*ask[:-1], "new", "--quiet", "--dry-run")
    warned: dict[tuple[str, ...], int] = {
        ("cost", "run"): 1,
        ("estimate", *ask, "--max-cost", "1", "--retry-failed"): 1,
        ("estimate", *ask[:-1], "new"): 1,
        ("run", *new, "--max-cost", "1"): 1,
        ("run", *new): 0,
        ("prices", "gpt-4.1"): 1,
    }
    asked = [(str(tmp_path), list(map(str, words))) for words in warned]
    asked.append((str(tmp_path / "own"), ["cost", "run"]))
    process = begin(json.dumps(asked), command=(sys.executable, "-c", _OLD_LIST), stderr=STDOUT)
    out, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, out
    said = [" ".join(some.split()) for some in out.split("\036")[:-1]]
    old = "days old: no price in it was checked after 2025-"
    assert [some.count(old) for some in said] == [*warned.values(), 0]


def test_runs_are_one_bill_by_team_and_tier(write_rows: Any, batchrun: Run, query: Any) -> None:
    rows = [
        {"id": f"q{row}", "team": "ab"[row % 2], "speed": tier, "question": f"Say {row}."}
        for row, tier in enumerate(["default", "flex", "default", "default"])
    ]
    source = write_rows(rows)
    ask = ("--prompt", "{{ question }}", "--model", "o3", "--simulate", "--quiet")
    sent = ("--set", "service_tier={{ speed }}")
    for number, limit in ((1, 4), (2, 2)):
        done = batchrun("run", source, *ask, *sent, "--limit", limit, "-o", f"runs/{number}")
        assert done.returncode == 0, done.stderr
    runs = ("runs/1", "runs/2")
    asked = ("--by", "team", "--by", "tier", "--by", "started_at:year", "--format", "json")
    bill = json.loads(batchrun("cost", *runs, *asked).stdout)
    sums = query("SELECT sum(cost_usd), count(*) FROM read_parquet(?)", "runs/*")
    assert bill["total"]["cost_usd"] == pytest.approx(sums[0][0])
    assert bill["total"]["rows"] == sums[0][1] == 6
    assert {tuple(line["values"][:2]) for line in bill["groups"]} == {
        ("a", "standard"),
        ("b", "flex"),
        ("b", "standard"),
    }
    table = batchrun("cost", *runs, "--by", "run").stdout
    assert table.splitlines()[0] == "2 runs in runs"
    twice = batchrun("cost", "runs/1", "./runs/1")
    assert twice.returncode == 2
    assert "given more than once" in twice.stderr
    # Its report calls the tier by the same name, and so does `show`.
    assert "default" not in batchrun("report", "runs/1").stdout
    assert "o3, tier standard" in batchrun("show", "runs/1", "q0").stdout
    prices = batchrun("prices", "o3", "--format", "markdown")
    assert "| o3 | flex |" in prices.stdout


def test_a_run_with_faults_is_one_sum_for_all_commands(
    write_rows: Any, questions: Any, simulator: Any, batchrun: Run
) -> None:
    source = write_rows(questions(60))
    base_url = simulator("--faults", "0.2", "--retry-after", "0")
    ask = ("run", source, "--prompt", "{{ question }}", "--model", "o3", "--base-url", base_url)
    done = batchrun(*ask, "--max-attempts", "2", "-o", "run", "--quiet", "--json")
    assert done.returncode in (0, 4), done.stderr
    ended = json.loads(done.stdout)
    status = json.loads(batchrun("status", "run", "--json").stdout)
    bill = json.loads(batchrun("cost", "run", "--json").stdout)
    query = "SELECT sum(cost_usd) AS usd, count(*) AS rows, count_if(ok) AS ok FROM responses"
    (row,) = json.loads(batchrun("sql", "run", query, "--format", "json").stdout)
    total = bill["total"]
    sums = [ended["cost_usd"], status["cost_usd"], total["cost_usd"], row["usd"]]
    assert sums == [pytest.approx(row["usd"], rel=1e-9)] * 4
    assert [total["rows"], total["ok"]] == [row["rows"], row["ok"]] == [60, status["ok"]]
    assert total["attempts"] == status["attempts"] == ended["attempts"]
    unknown = total["unknown"] + total["unpriced"]
    assert unknown == status["unknown_attempts"]
    shown = known_usd(row["usd"], is_partly=unknown > 0)
    assert f"; {shown}\n" in batchrun("report", "run").stdout
    assert f"cost: {shown}\n" in batchrun("cost", "run").stdout
