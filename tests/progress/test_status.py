from pathlib import Path

import pytest

from batchrun.progress.status import next_command

RUN = Path("runs/a b")
COMMAND = "batchrun run prompts.jsonl --prompt '{{ question }}'"


def test_after_some_failed_rows_the_same_command_sends_them_again() -> None:
    for status in ("failed", "no_answer", "cancelled"):
        said = next_command(COMMAND, RUN, 4, {status: 1}, "q1")
        assert said == f"{COMMAND} --retry-failed"


def test_the_option_is_named_once_and_without_kinds() -> None:
    said = next_command(f"{COMMAND} --retry-failed=timeout --json", RUN, 4, {"failed": 1}, "q1")
    assert said == f"{COMMAND} --json --retry-failed"
    said = next_command("batchrun run -- prompts.jsonl", RUN, 4, {"failed": 1}, "q1")
    assert said == "batchrun run --retry-failed -- prompts.jsonl"


def test_where_it_would_send_nothing_a_row_is_shown() -> None:
    statuses = {"completed": 3, "incomplete": 1, "invalid": 1, "failed": 0}
    assert next_command(COMMAND, RUN, 4, statuses, "q 1") == "batchrun show 'runs/a b' 'q 1'"
    assert next_command(None, RUN, 4, {"failed": 1}, None) == "batchrun show 'runs/a b' ID"


def test_after_other_ends_the_same_command_goes_on() -> None:
    statuses = {"completed": 2, "failed": 1}
    assert next_command(COMMAND, RUN, 3, statuses, None) == COMMAND
    assert next_command(COMMAND, RUN, 0, {}, None) is None


def test_where_nothing_but_failures_came_of_it_they_are_sent_again() -> None:
    statuses = {"completed": 0, "failed": 20}
    assert next_command(COMMAND, RUN, 3, statuses, None) == f"{COMMAND} --retry-failed"
    capped = next_command(COMMAND, RUN, 3, statuses, None, cap_usd=2.0)
    assert capped == f"{COMMAND} --max-cost 2"


@pytest.mark.parametrize("said", ["", " --max-cost 0.5", " --max-cost=0.5"])
def test_after_the_budget_a_higher_cap_goes_on(said: str) -> None:
    found = next_command(f"{COMMAND}{said} --json", RUN, 3, {}, None, cap_usd=1.3)
    assert found == f"{COMMAND} --json --max-cost 1.3"
    found = next_command("batchrun run --max-cost 1 -- a", RUN, 3, {}, None, cap_usd=0.00012)
    assert found == "batchrun run --max-cost 0.00012 -- a"


def test_after_the_first_rows_the_command_without_a_limit_goes_on() -> None:
    for said in (" --limit 5", " --limit=5"):
        assert next_command(COMMAND + said, RUN, 0, {}, None, remaining=3) == COMMAND
    assert next_command(f"{COMMAND} --limit 5", RUN, 0, {}, None, remaining=0) is None
    failed = {"failed": 1}
    assert next_command(f"{COMMAND} --limit 5", RUN, 4, failed, "q1", remaining=3) == COMMAND
    # Without rows left, those that failed may stand beyond the limit.
    again = f"{COMMAND} --retry-failed"
    assert next_command(f"{COMMAND} --limit 5", RUN, 4, failed, "q1") == again


def test_after_a_pilot_the_run_goes_on() -> None:
    estimate = COMMAND.replace("batchrun run", "batchrun estimate") + " --pilot 5 --limit 9"
    assert next_command(estimate, RUN, 0, {}, None, remaining=3) == f"{COMMAND} --limit 9"
    assert next_command(estimate, RUN, 4, {"failed": 1}, "q", remaining=3) == f"{COMMAND} --limit 9"
    assert next_command(estimate, RUN, 4, {"failed": 1}, "q") == f"{COMMAND} --retry-failed"
    failed = {"failed": 5}
    assert next_command(estimate, RUN, 3, failed, None) == f"{COMMAND} --limit 9 --retry-failed"


def test_a_pilot_that_sent_all_that_its_limit_allows_names_the_command_without_the_limit() -> None:
    estimate = COMMAND.replace("batchrun run", "batchrun estimate") + " --pilot 9 --limit 9"
    for code, statuses in ((0, {}), (4, {"failed": 1}), (137, {})):
        said = next_command(
            estimate, RUN, code, statuses, "q", remaining=3, asked=0, beyond_pilot=0
        )
        assert said == COMMAND
        said = next_command(
            estimate, RUN, code, statuses, "q", remaining=3, asked=0, beyond_pilot=2
        )
        assert said == f"{COMMAND} --limit 9"


@pytest.mark.parametrize("code", [3, 130, 137, 143])
def test_a_command_that_was_ended_after_its_last_row_is_not_named_again(code: int) -> None:
    limited, failed = f"{COMMAND} --limit 9", {"completed": 5, "failed": 4}
    for remaining, statuses, expected in (
        (3, {"completed": 9}, COMMAND),
        (3, failed, COMMAND),
        (0, failed, f"{COMMAND} --retry-failed"),
        (0, {"completed": 9}, limited),  # it ends the run
        (3, {"failed": 9}, f"{limited} --retry-failed"),  # no more than it sent before
    ):
        said = next_command(limited, RUN, code, statuses, None, remaining=remaining, asked=0)
        assert said == expected
    # Which rows were sent again before a kill is not known: it is the same command that does.
    again = f"{limited} --rerun-changed"
    assert next_command(again, RUN, code, failed, None, remaining=3, asked=0) == again


def test_a_moment_to_stop_at_that_may_be_past_is_the_time_of_day() -> None:
    for code, remaining in ((0, 3), (3, 3), (130, 3), (137, 3)):
        said = next_command(
            f"{COMMAND} --limit 5 --stop-at 2026-11-30T18:30",
            RUN,
            code,
            {},
            None,
            remaining=remaining,
        )
        assert said is not None
        assert said.endswith("--stop-at 18:30")


def test_a_condition_stays_and_a_name_that_looks_like_an_option_is_a_name() -> None:
    some = f"{COMMAND} --where 'k > 1'"
    assert next_command(f"{some} --limit 5", RUN, 0, {}, None, remaining=3) == some
    assert next_command(some, RUN, 0, {}, None, remaining=0) is None
    assert next_command(some, RUN, 4, {"failed": 1}, "q") == f"{some} --retry-failed"
    assert next_command(some, RUN, 4, {"invalid": 1}, "-5") == "batchrun show -- 'runs/a b' -5"
