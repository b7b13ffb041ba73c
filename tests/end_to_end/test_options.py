"""Options of `run` and `estimate`: values from files, schemas, each option once, common guesses."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
_MODELS = """
from pydantic import BaseModel

class Inner(BaseModel):
    default: int = 3

class Answer(BaseModel):
    text: str
    parts: list[Inner] = []
"""


@pytest.fixture
def planned(batchrun: Run, tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """`batchrun run ... --dry-run` for one row with the column q."""
    (tmp_path / "a.jsonl").write_text('{"q": "What?", "n": 1}\n{"q": "Why?", "n": 2}\n')
    return lambda *words: batchrun("run", "a.jsonl", "--model", "gpt-4.1", "--dry-run", *words)


def test_values_and_templates_come_from_files(planned: Run, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"type": "web_search"}]')
    (tmp_path / "user.txt").write_text("somebody")
    (tmp_path / "prompt.txt").write_text("\ufeffSay {{ q }}\n", encoding="utf-8")
    done = planned(
        *("--prompt-file", "prompt.txt", "--set", "tools=@tools.json", "--set", "user=@user.txt"),
        *("--set", 'metadata.who="@me"'),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "tools": [{"type": "web_search"}],
        "user": "somebody",
        "metadata": {"who": "@me"},
        "model": "gpt-4.1",
        "input": "Say What?",
    }


@pytest.mark.parametrize(
    "said",
    [
        _SCHEMA,
        {"type": "json_schema", "name": "answer", "schema": _SCHEMA, "strict": True},
        {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": _SCHEMA, "strict": True},
        },
    ],
)
def test_a_schema_is_read_from_a_file(planned: Run, tmp_path: Path, said: object) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(said))
    done = planned("--prompt", "{{ q }}", "--schema", "answer.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"]["format"] == {
        "type": "json_schema",
        "name": "answer",
        "schema": _SCHEMA,
        "strict": True,
    }


def test_a_schema_is_made_of_a_model(planned: Run, tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    (tmp_path / "models.py").write_text(_MODELS)
    done = planned("--prompt", "{{ q }}", "--schema", "models.py:Answer")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["text"]["format"]
    assert (made["name"], made["strict"]) == ("Answer", True)
    assert made["schema"]["required"] == ["text", "parts"]
    inner = made["schema"]["$defs"]["Inner"]
    assert (inner["required"], inner["additionalProperties"]) == (["default"], False)
    missing = planned("--prompt", "{{ q }}", "--schema", "models.py:Anser")
    assert missing.returncode == 2
    assert "its models are Inner, Answer" in missing.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "tools={a"), "begins like JSON but is not JSON: Expecting property name"),
        (("--set", "tools=@none.json"), "none.json: it cannot be read"),
        (("--set", "a=1", "--set", "a=2"), "a is given twice"),
        (("--schema", "none.json"), "none.json: cannot be read"),
        (("--schema", "a.jsonl"), "a.jsonl: not JSON"),
        (("--prompt", "{{ q }}", "--prompt", "{{ n }}"), "--prompt is given 2 times"),
        (("--limit", "1", "--limit", "2"), "--limit is given 2 times"),
        (("--prompt", "{{ q }}", "--prompt-file", "a.jsonl"), "--prompt-file and --prompt set"),
        (("--set", "model=x"), "--model and --set model=… set the same"),
        (("--budget", "5"), "the cap on dollars is --max-cost USD"),
        (("--temperature", "0"), "--set temperature=VALUE"),
        (("--resume",), "the same command continues where it stopped"),
        (("--n", "5"), "only the first N rows: --limit N"),
        (("--max-tokens", "5"), "--set max_output_tokens=N"),
        (("--api-key", "x"), "a key is never an option"),
    ],
)
def test_what_cannot_be_meant_is_an_error_with_what_to_say(
    planned: Run, words: tuple[str, ...], said: str
) -> None:
    done = planned(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_templates_are_no_broken_json(planned: Run) -> None:
    done = planned(
        "--prompt", "{{ q }}", "--set", "metadata.n={{ n }}", "--set", "user={% if q %}u{% endif %}"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metadata"] == {"n": 1}


def test_other_commands_refuse_an_option_given_twice(batchrun: Run) -> None:
    done = batchrun("export", "run", "out.jsonl", "--format", "csv", "--format", "jsonl")
    assert done.returncode == 2
    assert "--format is given 2 times" in done.stderr


def test_warnings_are_shown_when_quiet_and_stand_in_the_json(batchrun: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "service_tier": "flex"}\n')
    command = ("run", "a.jsonl", "--model", "gpt-4.1", "--simulate", "--quiet", "--json")
    done = batchrun(*command)
    assert done.returncode == 0, done.stderr
    assert "warning: service_tier (1 row)" in done.stderr
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning.startswith("service_tier (1 row)")
    (remedy,) = re.findall(r"--send \w+(?= sends)", warning)
    sent = batchrun(*command, "-o", "other", *shlex.split(remedy))
    assert json.loads(sent.stdout)["warnings"] == []
