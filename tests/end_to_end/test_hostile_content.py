"""Rows and answers are data: whatever they hold, it is stored as it is and shown harmless."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., "Popen[str]"]
Query = Callable[..., list[tuple[Any, ...]]]

# Clears the screen, sets the title, asks the terminal for its name, rings, turns the writing round.
_ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x1b[c\x08\r\x7f\u202eevil"
_HARMLESS = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]*")
_OUR_FILES = re.compile(
    r"run\.json|live\.json|events\.jsonl|lock|(responses|tool_calls|journal|input)"
    r"|(responses|tool_calls)/w0-\d{6}(-not_ok)?\.parquet|journal/\S+"
)
_ASK = ("--prompt", "{{ question }}", "--model", "gpt-4.1", "-o", "run")


def _deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def _answer(text: str = '"hi"', arguments: str = '"{}"', extra: str = "") -> bytes:
    """An answer put together from pieces of JSON, some of which no reader should take."""
    message = f'{{"type":"message","content":[{{"type":"output_text","text":{text}}}]}}'
    call = f'{{"type":"function_call","call_id":"c","name":"f","arguments":{arguments}}}'
    usage = '{"input_tokens":1,"output_tokens":2,"total_tokens":3}'
    return (
        f'{{"id":"r","object":"response","status":"completed"{extra},"output":[{message},{call}],'
        f'"usage":{usage}}}'
    ).encode()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "code": message, "type": message}}).encode()


# What a server answers: status, body; and what is stored: ok, kind, text, whether arguments parse.
_ANSWERS: dict[str, tuple[int, bytes, tuple[bool, str | None, str | None, bool | None]]] = {
    "escapes": (200, _answer(json.dumps(_ESCAPES)), (True, None, _ESCAPES, True)),
    "escapes in an error": (400, _error(_ESCAPES), (False, "bad_request", None, None)),
    "escapes in a page": (404 + 9, _ESCAPES.encode(), (False, "too_long", None, None)),
    "a lone surrogate": (200, _answer('"a\\ud800b"'), (True, None, "a\ufffdb", True)),
    "bytes that are no UTF-8": (
        200,
        _answer().replace(b"hi", b"\xff\xfe"),
        (True, None, "\ufffd\ufffd", True),
    ),
    "NUL": (200, _answer('"a\\u0000b"'), (True, None, "a\x00b", True)),
    "NaN": (200, _answer(extra=',"x":NaN'), (True, None, "hi", True)),
    "a number out of range": (200, _answer(extra=',"x":1e400'), (True, None, "hi", True)),
    "an integer beyond 64 bits": (200, _answer(extra=f',"x":{"9" * 40}'), (True, None, "hi", True)),
    "an integer of pages": (200, _answer(extra=f',"x":{"9" * 9_000}'), (True, None, "hi", True)),
    "usage beyond 64 bits": (
        200,
        _answer().replace(b'"input_tokens":1', b'"input_tokens":' + b"9" * 30),
        (True, None, "hi", True),
    ),
    "the last of two keys": (
        200,
        _answer().replace(b'"text":', b'"text":"no","text":'),
        (True, None, "hi", True),
    ),
    "nested": (200, _answer(extra=f',"x":{_deep(400)}'), (True, None, "hi", True)),
    "nested too deeply": (
        200,
        _answer(extra=f',"x":{_deep(100_000)}'),
        (False, "unreadable", None, None),
    ),
    "huge": (200, _answer(json.dumps("x" * 8_000_000)), (True, None, "x" * 8_000_000, True)),
    "arguments NaN": (200, _answer(arguments='"{\\"a\\":NaN}"'), (True, None, "hi", False)),
    "arguments nested too deeply": (
        200,
        _answer(arguments=json.dumps(_deep(100_000))),
        (True, None, "hi", False),
    ),
    "arguments with a key twice": (
        200,
        _answer(arguments='"{\\"a\\":1,\\"a\\":2}"'),
        (True, None, "hi", True),
    ),
    "arguments beyond 64 bits": (
        200,
        _answer(arguments=json.dumps(f'{{"a":{"9" * 40}}}')),
        (True, None, "hi", True),
    ),
    "arguments with a lone surrogate": (
        200,
        _answer(arguments='"{\\"a\\":\\"\\\\ud800\\"}"'),
        (True, None, "hi", True),
    ),
    "arguments that are none": (200, _answer(arguments='"\\u001b["'), (True, None, "hi", False)),
}


class _Hostile(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer, _ = _ANSWERS.get(
            body["input"], (200, _answer(json.dumps(body["input"])), None)
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Request-Id", "\x9b31mid")
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    """A server that answers with what the row names, else with the row's own words."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hostile)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def _assert_harmless(*texts: str) -> None:
    for text in texts:
        found = _HARMLESS.match(text)
        assert found is not None
        assert found[0] == text, repr(text[found.end() : found.end() + 40])


def test_whatever_a_server_answers_has_a_defined_outcome_and_is_shown_harmless(
    write_rows: Any, batchrun: Run, query: Query, hostile: str
) -> None:
    source = write_rows({"question": name, "custom_id": name} for name in _ANSWERS)
    tools = ("--set", 'tools=[{"type": "function", "name": "f"}]')
    command = ("run", source, *_ASK, *tools, "--base-url", hostile, "--max-attempts", "1", "--json")
    done = batchrun(*command)
    assert done.returncode == 4, done.stderr
    stored = query("SELECT custom_id, ok, error_kind, output_text FROM read_parquet(?)")
    parse: dict[str, bool] = dict(
        query("SELECT custom_id, arguments_valid FROM read_parquet(?)", table="tool_calls")
    )
    found = {name: (ok, kind, text, parse.get(name)) for name, ok, kind, text in stored}
    assert found == {name: expected for name, (_, _, expected) in _ANSWERS.items()}
    status = [batchrun("status", "run", *words).stdout for words in ((), ("--json",))]
    _assert_harmless(done.stdout, done.stderr, *status)
    for name in _ANSWERS:
        if name != "huge":
            shown = batchrun("show", "run", name)
            assert shown.returncode == 0, shown.stderr
            _assert_harmless(shown.stdout)


# Lines of a prompt set, and what comes of them: the text that is sent, or why none is.
_LINES: tuple[tuple[bytes, str], ...] = (
    (b'{"question": "a\\ud800b"}', "a\ufffdb"),
    (b'{"question": "a\\u0000b"}', "a\x00b"),
    (b'{"question": "\\u001b[2J"}', "\x1b[2J"),
    (b'{"question": 18446744073709551616}', "18446744073709551616"),
    (b'{"question": "x", "question": "y"}', "y"),
    (b'{"question": {"a": 1, "a": 2}}', '{"a": 2}'),
    (b'{"question": "{{ 7 * 7 }}{% for x in y %}"}', "{{ 7 * 7 }}{% for x in y %}"),
    (b'{"question": NaN}', "a value would be sent that is NaN"),
    (b'{"question": -Infinity}', "a value would be sent that is -Infinity"),
    (b'{"question": 1e400}', "the number 1e400 is out of range"),
    (b'{"question": ' + b"9" * 9_000 + b"}", "an integer of 9,000 digits"),
    (b'{"question": ' + _deep(100_000).encode() + b"}", "nested too deeply"),
    (b'{"question": "\xff"}', "not UTF-8"),
    (b'{"question": "x"', "not JSON"),
    (b"\x1b[2J", "not JSON"),
)


def test_whatever_a_row_holds_has_a_defined_outcome(
    tmp_path: Path, batchrun: Run, query: Query, hostile: str
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(line for line, _ in _LINES))
    command = ("run", "rows.jsonl", *_ASK, "--base-url", hostile)
    refused = batchrun(*command)
    assert refused.returncode == 2
    bad = [number for number, (_, said) in enumerate(_LINES, 1) if number > 7]
    for number in bad:
        assert f"rows.jsonl:{number}: " in refused.stderr
    done = batchrun(*command, "--skip-bad-rows")
    assert done.returncode == 4, done.stderr
    rows = query("SELECT row, output_text, error_message FROM read_parquet(?) ORDER BY row")
    for (_, said), (_, text, message) in zip(_LINES, rows, strict=True):
        assert said == text or said in (message or "")
    dry = batchrun("run", "rows.jsonl", *_ASK, "--dry-run", "--simulate", "--skip-bad-rows")
    _assert_harmless(refused.stderr, done.stderr, dry.stdout, dry.stderr)


_IDS = (
    *("../../../escaped", "/etc/passwd", "..", "batchrun: all is well\n", "x" * 10_000, _ESCAPES),
    *(".", "a/b", "a\\b", "C:\\x", "-rf", "*", "~", "%2e%2e", "a\x00b", " ", "run.json", "e\u0301"),
)


def test_no_id_touches_a_file_name_or_a_terminal(
    tmp_path: Path, write_rows: Any, batchrun: Run, query: Query, hostile: str
) -> None:
    rows = [{"question": "q", "custom_id": name, f"{_ESCAPES}": 1} for name in _IDS]
    source = write_rows(rows)
    done = batchrun("run", source, *_ASK, "--base-url", hostile)
    assert done.returncode == 0, done.stderr
    stored = query("SELECT custom_id FROM read_parquet(?)")
    assert sorted(name for (name,) in stored) == sorted(_IDS)
    run = tmp_path / "run"
    for path in run.rglob("*"):
        assert _OUR_FILES.fullmatch(path.relative_to(run).as_posix()), path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "run"]
    outputs = [done.stderr]
    for name in _IDS:
        if "\x00" not in name:
            shown = batchrun("show", "run", "--", name)
            assert shown.returncode == 0, shown.stderr
            outputs.append(shown.stdout)
    write_rows([*rows, rows[0]])
    twice = batchrun("run", source, *_ASK, "--base-url", hostile)
    assert twice.returncode == 2
    write_rows(rows[:3])
    gone = batchrun("run", source, *_ASK, "--base-url", hostile)
    assert gone.returncode == 2
    assert "  batchrun: all is well\\n (row 3): removed" in gone.stderr
    assert "\nbatchrun: all is well" not in gone.stderr
    assert "x" * 100 not in gone.stderr
    _assert_harmless(*outputs, twice.stderr, gone.stderr, batchrun("show", "run", _ESCAPES).stdout)


def test_a_terminal_gets_no_escapes_of_rows_or_servers(
    write_rows: Any, on_terminal: Callable[..., str], hostile: str
) -> None:
    names = ["escapes", "escapes in an error", "escapes in a page"] * 4
    source = write_rows(
        {"question": name, "custom_id": f"{_ESCAPES}{number}"} for number, name in enumerate(names)
    )
    shown = on_terminal("run", source, *_ASK, "--base-url", hostile, code=4)
    assert "evil" in shown
    for escape in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b", "\x1b[c", "\x08", "\u202e"):
        assert escape not in shown
