"""20,000 prompt files and job files, good and bad: each ends in a clear message or a right plan."""

import gzip
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import InputError, JobError
from batchrun.job.job_file import load_job
from batchrun.records import BadRow, Request
from batchrun.runner.plan import Plan, dry_run

_EACH = 1_000
_LOTS = [*range(2), *(pytest.param(lot, marks=pytest.mark.long) for lot in range(2, 10))]
_MOST_LETTERS = 6_000  # of a message: ten rows, each with what is wrong

_TEXTS = (
    "What is 2 + 2?",
    "",
    " ",
    "é漢字🙂",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "../../etc/passwd",
    "a\nb",
    "{{ question }}",
    "x" * 10_000,
    "\u202egnp.exe",
    "0",
    "null",
    "[1, 2]",
    '{"role": "user", "content": "hi"}',
)
# As they stand in a file: some no reader takes, some only a patient one.
_RAW = (
    "NaN",
    "-Infinity",
    "1e400",
    "-0.0",
    "1" * 30,
    "1" * 5_000,
    "18446744073709551616",
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    "[" * 5_000 + "]" * 5_000,
    "[" * 200 + "]" * 200,
    '{"a":' * 3_000 + "1" + "}" * 3_000,
    '{"a": 1, "a": 2}',
    "[]",
    "{}",
    "tru",
    '"',
    "0x10",
    "01",
)
_NAMES = (
    *("prompt", "input", "messages", "body", "custom_id", "id", "question", "answer", "model"),
    *("instructions", "tools", "temperature", "url", "method", "row", "ok", "status", "Question"),
    *("stream", "background", "metadata", "max_output_tokens", "response_format", "__class__"),
    *(
        "",
        " ",
        "a.b",
        "a`b",
        "a\nb",
        "é",
        "custom_id_input",
        "text",
        "user",
        "previous_response_id",
    ),
)
_GOOD = 6  # of the templates, the first
_TEMPLATES = (
    "{{ question }}",
    "{{ question }} and {{ answer | default('none') }}",
    "{{ row['question'] }}",
    "{{ messages | tojson }}",
    "{% for one in messages %}{{ one.content }}{% endfor %}",
    "plain",
    "{{ no_such_column }}",
    "{{ question",
    "{% if %}",
    "{{ ''.__class__.__mro__ }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ question * 10**9 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ question | upper | attr('format') }}",
    "{{ row.pop('question') }}",
    "{{ 1 / 0 }}",
    "{% include 'x' %}",
)


class _Maker:
    """Rows, files and jobs by chance; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def one(self, of: Any) -> Any:
        return self.chance.choice(of)

    def now_and_then(self, share: float) -> bool:
        return self.chance.random() < share

    def value(self, depth: int = 0) -> Any:
        kind = self.chance.randrange(9 if depth < 3 else 6)
        if kind < 2:
            return self.one(_TEXTS)
        if kind == 2:
            return self.one((0, 1, -1, 17, 2**31, 2**63 - 1, 2**63, -(2**64), 10**25))
        if kind == 3:
            return self.one((0.5, -1e-300, 1e300, 3.0))
        if kind < 6:
            return self.one((True, False, None))
        count = self.chance.randrange(4)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(count)]
        return {self.one(_NAMES): self.value(depth + 1) for _ in range(count)}

    def message(self) -> dict[str, Any]:
        role = self.one(("user", "assistant", "system", "tool", "developer", "nobody", None, 3))
        content = self.one(("hi", "", None, [{"type": "text", "text": "hi"}], self.value(1)))
        extra = {"tool_calls": self.value(1)} if self.now_and_then(0.1) else {}
        return {"role": role, "content": content, **extra}

    def row(self) -> Any:
        """A row of one of the forms, with columns of any kind now and then."""
        row: dict[str, Any] = self.one(
            (
                {"question": self.one(_TEXTS), "answer": "4"},
                {"prompt": self.one(_TEXTS)},
                {"input": self.one(("hi", [{"role": "user", "content": "hi"}]))},
                {"messages": [self.message() for _ in range(self.chance.randrange(3))]},
                {"body": {"input": "hi", "model": "m"}, "url": "/v1/responses"},
                {"body": self.value(1), "url": self.one(("/v1/responses", "/v1/files", 1))},
            )
        ).copy()
        if self.now_and_then(0.3):
            row["custom_id"] = self.one(
                ("a", "b", 1, "", None, "../x", "\x00", "i\nd", "x" * 9_999)
            )
        if self.now_and_then(0.3):
            row[self.one(_NAMES)] = self.value()
        if self.now_and_then(0.05):
            return self.value()
        return row

    def line(self) -> bytes:
        text = json.dumps(self.row(), ensure_ascii=self.now_and_then(0.5))
        if self.now_and_then(0.06):
            text = re.sub(r'(?<=: )"[^"]*"|(?<=: )\d+', lambda _: self.one(_RAW), text, count=1)
        line = text.encode(errors="replace")
        if self.now_and_then(0.04):
            at = self.chance.randrange(len(line) + 1)
            line = self.one((line[:at], line[:at] + b"\xff" + line[at:], line + line, line + b","))
        return line

    def prompt_file(self, folder: Path) -> Path:
        lines = [self.line() for _ in range(self.chance.randrange(7))]
        if self.now_and_then(0.1):
            lines.insert(0, self.one((b"", b"  ", b"\xef\xbb\xbf{}", b"[", b"\x00", b"null")))
        data = self.one((b"\n", b"\r\n")).join(lines) + self.one((b"", b"\n"))
        if self.now_and_then(0.05):
            return self.compressed(folder, data)
        if self.now_and_then(0.05):
            return self.parquet(folder, data)
        path = folder / "prompts.jsonl"
        _write(path, data)
        return path

    def compressed(self, folder: Path, data: bytes) -> Path:
        path = folder / "prompts.jsonl.gz"
        packed = gzip.compress(data, 1)
        _write(
            path, packed[: self.chance.randrange(len(packed))] if self.now_and_then(0.5) else packed
        )
        return path

    def parquet(self, folder: Path, data: bytes) -> Path:
        path = folder / "prompts.parquet"
        try:
            rows = [json.loads(line) for line in data.splitlines() if line]
            pq.write_table(pa.Table.from_pylist([row for row in rows if type(row) is dict]), path)
        except (ValueError, OverflowError, RecursionError, pa.ArrowException):
            _write(path, data)  # a prompt set with the wrong ending
        return path

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        if self.now_and_then(0.9):
            settings["request.model"] = "m"
        if self.now_and_then(0.5):
            settings["request.input"] = self.one(
                _TEMPLATES if self.now_and_then(0.5) else _TEMPLATES[:_GOOD]
            )
        if self.now_and_then(0.7):
            settings["input.skip_bad_rows"] = True
        if self.now_and_then(0.05):
            settings["input.id"] = self.one(_NAMES)
        if self.now_and_then(0.05):
            settings["input.carry"] = self.chance.sample(_NAMES, 2)
        if self.now_and_then(0.05):
            settings["input.send"] = self.chance.sample(_NAMES, 1)
        if self.now_and_then(0.05):
            types = ("string", "int64", "double", "bool", "json", "texts")
            settings["input.types"] = {self.one(_NAMES): self.one(types)}
        if self.now_and_then(0.1):
            settings[f"request.{self.one(_NAMES)}"] = self.value()
        if self.now_and_then(0.1):
            settings["limits.max_cost_usd"] = self.one((0, 0.5, 10))
        return settings

    def setting(self) -> Any:
        """A value for a key of a job file."""
        return self.one(
            (
                *(0, 1, -1, 5, 10**30, 0.5, float("nan"), float("inf"), -0.0, True, False),
                *("auto", "5%", "500%", "", "none", "plain", "stream", "gpt-4.1", "env:HOME"),
                *("prompts.jsonl", ".", "https://example.org/v1", "http://127.0.0.1:1/v1", "a b"),
                *("{{ question }}", "{{ question", "sk-0123456789abcdefghij", "é\x00\x1b[0m"),
                *([], ["question"], [1, [2]], {}, {"a": 1}, {"question": "string"}),
            )
        )

    def job_file(self, folder: Path) -> Path:
        job: dict[str, dict[str, Any]] = {
            "input": {"path": "prompts.jsonl"},
            "request": {"model": "gpt-4.1", "input": "{{ question }}"},
        }
        for _ in range(self.chance.randrange(4)):
            section = self.one(_SECTIONS)
            key = self.one(_KEYS[section])
            if self.now_and_then(0.15):
                key = self.misspelt(key)
            job.setdefault(section, {})[key] = self.setting()
        if self.now_and_then(0.05):
            job[self.misspelt(self.one(_SECTIONS))] = {"path": "x"}
        text = "\n".join(_toml(section, table) for section, table in job.items()).encode()
        if self.now_and_then(0.1):
            at = self.chance.randrange(len(text) + 1)
            text = self.one(
                (text[:at], text[:at] + self.one((b"\xff", b"=", b"[", b'"', b"\n")) + text[at:])
            )
        path = folder / "job.toml"
        _write(path, text)
        return path

    def misspelt(self, word: str) -> str:
        at = self.chance.randrange(len(word) + 1)
        letter: str = self.one(string.ascii_lowercase)
        return word[:at] + letter + word[at + 1 :]


_KEYS = {
    "input": ("path", "id", "carry", "send", "types", "format", "skip_bad_rows"),
    "request": ("model", "input", "instructions", "stream", "max_output_tokens", "tools", "prompt"),
    "endpoint": (
        *("base_url", "api_key_env", "mode", "headers", "query", "timeout_s", "idle_timeout_s"),
        *("connect_timeout_s", "max_response_bytes", "api_key"),
    ),
    "limits": (
        *("concurrency", "requests_per_minute", "tokens_per_minute", "max_cost_usd"),
        *("max_failures", "give_up_after_s", "hedge"),
    ),
    "retry": ("max_attempts", "max_wait_s", "max_elapsed_s", "on_incomplete", "on_invalid_output"),
    "output": ("path", "store_request", "part_rows", "part_bytes"),
    "pricing": ("gpt-4.1", "m"),
    "aliases": ("gpt-4.1", "m"),
}
_SECTIONS = tuple(_KEYS)


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # ten times faster than to write over it
    path.write_bytes(data)


def _toml(section: str, table: dict[str, Any]) -> str:
    return "\n".join(
        [f"[{section}]", *(f"{_key(key)} = {_word(value)}" for key, value in table.items())]
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_word(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_word, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _planned(path: Path, settings: dict[str, Any]) -> tuple[Plan, list[Request | BadRow]]:
    job = load_job(path, settings)
    plan = dry_run(job, simulate=True)
    return plan, list(plan.prompts.requests(plan.layout, bytearray(plan.rows), None))


def _check_message(error: Exception, *places: str) -> None:
    message = str(error)
    assert any(place in message for place in places), message[:500]
    assert len(message) <= _MOST_LETTERS
    assert "sk-0123456789" not in message


def _check_plan(plan: Plan, rows: list[Request | BadRow]) -> None:
    """The plan counts what then comes, each row once, each request whole."""
    assert [row.row for row in rows] == list(range(plan.rows))
    requests = [row for row in rows if isinstance(row, Request)]
    assert len(requests) == plan.to_send == plan.rows - plan.bad_rows
    assert all(row.message for row in rows if isinstance(row, BadRow))
    assert len({row.custom_id for row in rows}) == len(rows)
    assert plan.first == (requests[0] if requests else None)
    for request in requests:
        body = json.loads(request.body)
        assert isinstance(body, dict)
        assert "stream" not in body
        assert "background" not in body
        assert len(request.carried) == len(plan.layout.columns)


def _try_each(
    seed: int, case: Callable[[_Maker], tuple[Path, dict[str, Any], tuple[str, ...]]]
) -> dict[str, int]:
    """Each case to its end; how many ended how."""
    ends = {"plan": 0, "message": 0}
    for number in range(seed * _EACH, (seed + 1) * _EACH):
        path, settings, places = case(_Maker(number))
        try:
            plan, rows = _planned(path, settings)
        except (JobError, InputError) as error:
            _check_message(error, *places)
            ends["message"] += 1
        except Exception as error:
            shown = path.read_bytes()[:2_000]
            raise AssertionError(f"case {number}: {settings} {shown!r}") from error
        else:
            _check_plan(plan, rows)
            ends["plan"] += 1
    return ends


@pytest.mark.parametrize("lot", _LOTS)
def test_any_prompt_file_ends_in_a_message_or_a_plan(
    lot: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def case(maker: _Maker) -> tuple[Path, dict[str, Any], tuple[str, ...]]:
        path, settings = maker.prompt_file(Path()), maker.settings()
        return path, settings, (path.name, *settings, "the options", "[input]")

    ends = _try_each(lot, case)
    assert min(ends.values()) > _EACH / 10, ends


@pytest.mark.parametrize("lot", _LOTS)
def test_any_job_file_ends_in_a_message_or_a_plan(
    lot: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n' * 2)

    def case(maker: _Maker) -> tuple[Path, dict[str, Any], tuple[str, ...]]:
        path = maker.job_file(Path())
        keys = [f"{section}.{key}" for section, names in _KEYS.items() for key in names]
        places = ("job.toml", "prompts.jsonl", "[input]", "base URL", "request.", "no such file")
        return path, {}, (*places, *keys)

    ends = _try_each(1_000 + lot, case)
    assert min(ends.values()) > _EACH / 10, ends
