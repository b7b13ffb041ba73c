"""Each statement of PROTOCOL has a test that exists, and docs/protocol.md says which."""

import ast
import runpy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
_DOCS = runpy.run_path(str(Path(__file__).with_name("make_docs.py")))
STATEMENTS: list[dict[str, Any]] = _DOCS["read_statements"]()

# All that must be there, in order: a statement that is dropped is missed here.
EXPECTED = """
    0.1 0.2 0.3.error 0.3.unreadable 0.3.content_type 0.3.stream_said 0.4 0.5 0.6.inside 0.6.no_end
    0.7.type 0.7.noise 0.8 0.9 0.10
    A.1.endpoints A.1.429
    A.2.untouched A.2.unknown_refused
    A.3.extras A.3.output_text A.3.status A.3.incomplete A.3.cut_though_completed A.3.error
    A.3.usage A.3.tool_usage A.3.service_tier
    A.4.message A.4.function_call A.4.reasoning A.4.web_search_call A.4.file_search_call
    A.4.code_interpreter_call A.4.image_generation_call A.4.mcp A.4.custom_tool_call
    A.4.computer_call A.4.shell_and_patch A.4.opaque A.4.annotations A.4.refusal
    A.5.terminal A.5.sequence_number A.5.error A.5.error_then_failed A.5.events A.5.first_token
    A.5.obfuscation A.5.rebuilt A.5.framing
    A.6.poll A.6.poll_fails A.6.cancel A.6.store A.6.at_once A.6.no_mode A.6.taken_up
    B.1.1 B.1.2 B.1.3 B.1.4 B.1.5 B.1.6 B.1.7 B.1.8 B.1.9 B.1.10 B.1.11
    B.2.billing B.2.rate_limit B.2.slow_down B.2.over_limit B.2.flex B.2.server B.2.lost
    B.2.gateway_timeout B.2.too_long B.2.policy B.2.other_4xx B.2.refused B.2.firewall
    B.2.not_there B.2.redirect
    B.4.retry_after B.4.renamed B.4.should_retry B.4.durations B.4.reset B.4.strange
    B.4.request_id B.4.cost B.4.size B.4.organisation_and_azure B.4.client_request_id
    B.5
    B.6.bad_token B.6.quota B.6.forbidden B.6.no_channel B.6.permanent_500 B.6.too_large
    B.6.unreachable B.6.upstream_status B.6.error_in_200 B.6.bad_body B.6.limits
    B.6.not_implemented B.6.slow_pass B.6.streams B.6.json_as_stream B.6.no_get B.6.one_api
    B.6.names

    # W.1
    W.1.said W.1.whole W.1.index W.1.twice

    # W.2
    W.2.done W.2.items_done W.2.goes_on W.2.words W.2.untyped W.2.partial

    # W.3
    W.3.few_rows W.3.all_rows

    # W.4
    W.4.not_yet W.4.gone W.4.no_mode W.4.odd_polls W.4.unread_polls W.4.refused W.4.statuses
    W.4.create_cut W.4.unknown_cost W.4.accepted

    # W.5
    W.5.before W.5.thinking W.5.stall W.5.advice

    # W.6
    W.6.words W.6.running W.6.reason

    # W.7
    W.7.short W.7.long W.7.coding W.7.other_api W.7.unasked W.7.status

    # W.8
    W.8.content W.8.object

    # W.9
    W.9.words W.9.limit W.9.echo W.9.quote

    # W.10
    W.10.named W.10.unnamed W.10.long W.10.sides W.10.given W.10.separators

    # W.11
    W.11.statuses W.11.limits W.11.both W.11.pages
    W.11.outage W.11.hold

    # W.12
    W.12.spellings W.12.beside W.12.cost W.12.none

    # W.13
    W.13.empty W.13.white_space W.13.results W.13.unfit W.13.text W.13.first W.13.reask
    W.13.counted W.13.stops W.13.released

    # W.14
    W.14.empty_error W.14.arguments
    W.14.moment W.14.closing W.14.certificate W.14.proxy

    # W.15
    W.15.in_text

    # W.16
    W.16.stored W.16.disk

    # W.17
    W.17.refused W.17.refused_again W.17.ttl W.17.command

    # W.18
    W.18.words W.18.unknown

    # W.19
    W.19.model W.19.reasoning_alone W.19.unknown_costs W.19.unpriced
    W.19.request_id W.19.failed_response W.19.reasoning_text W.19.knows_incomplete
    W.19.url W.19.no_key
"""


class _File(NamedTuple):
    tests: frozenset[str]
    texts: frozenset[str]  # among them the names of the cases that tests are run for


@cache
def _in(path: str) -> _File:
    file = ROOT / path
    tree = ast.parse(file.read_text("utf-8") if file.is_file() else "")
    functions = [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return _File(
        frozenset(name for name in functions if name.startswith("test_")),
        frozenset(text for text in texts if isinstance(text, str)),
    )


def test_every_statement_is_there_once_and_in_order() -> None:
    ids = [statement["id"] for statement in STATEMENTS]
    assert len(set(ids)) == len(ids)
    lines = [line for line in EXPECTED.splitlines() if "#" not in line]
    assert ids == " ".join(lines).split()


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement["id"])
def test_a_statement_has_words_of_its_own_and_tests_that_exist(statement: dict[str, Any]) -> None:
    assert set(statement) == {"id", "says", "tests"}
    assert statement["says"].endswith(".")
    assert statement["tests"]
    assert len(set(statement["tests"])) == len(statement["tests"])
    for test in statement["tests"]:
        path, _, whole = test.partition("::")
        name, _, case = whole.removesuffix("]").partition("[")
        assert name in _in(path).tests, f"{test} does not exist: name another, or write it"
        # `[B.2.flex]` is the case of that name, or all those whose names begin with it and a blank.
        assert not case or any(f"{text} ".startswith(f"{case} ") for text in _in(path).texts), test


def test_no_test_here_stands_for_nothing() -> None:
    """A test of this folder that no statement names is in the wrong place."""
    named = {test.partition("[")[0] for statement in STATEMENTS for test in statement["tests"]}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name in (Path(__file__).name, "test_mutations.py"):
            continue
        relative = path.relative_to(ROOT).as_posix()
        for name in sorted(_in(relative).tests):
            assert f"{relative}::{name}" in named, name


def test_the_document_is_what_the_statements_make() -> None:
    said = _DOCS["render"](STATEMENTS)
    written = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    assert written == said, "run: python tests/protocol/make_docs.py"
