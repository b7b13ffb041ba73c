import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import JobError
from batchrun.inputs.rows import MissingColumn, RowProblem
from batchrun.inputs.template import Defaults

Read = Callable[..., Any]
Write = Callable[..., Path]

ROW = {
    "question": "Warum <b>?",
    "n": 3,
    "x": 0.5,
    "yes": True,
    "tags": ["ä", "b"],
    "meta": {"k": None, "deep": {"v": 1}},
    "nothing": None,
    "my col": "spaced",
}


def filled(value: Any, key: str = "metadata", row: dict[str, Any] = ROW) -> Any:
    body: dict[str, Any] = {}
    Defaults({key: value}).fill(body, row)
    return body[key]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ question }}", "Warum <b>?"),
        ("{{ n }}", 3),
        ("{{- n -}}", 3),
        ("  {{ n }}\n", 3),
        ("{{ n + 1 }}", 4),
        ("{{ yes }}", True),
        ("{{ tags }}", ["ä", "b"]),
        ("{{ tags | map('upper') }}", ["Ä", "B"]),
        ("{{ meta }}", {"k": None, "deep": {"v": 1}}),
        ("{{ meta.deep.v }}", 1),
        ("{{ meta.keys() }}", ["k", "deep"]),
        ("{{ nothing | default('none') }}", "none"),
        ("{{ absent | default(n) }}", 3),
        ("{{ [n, tags] }}", [3, ["ä", "b"]]),
        ("{{ row['my col'] }}", "spaced"),
        ("{{ range(3) }}", [0, 1, 2]),
        ("{{ 'x' | escape }}", "x"),
        ("n={{ n }}", "n=3"),
        ("{{ n }}{{ n }}", "33"),
        ("{% if n > 2 %}many{% else %}few{% endif %}\n", "many\n"),
        ("{{ tags }} of {{ meta }}", '["ä", "b"] of {"k": null, "deep": {"v": 1}}'),
        ("{{ tags | map('upper') }}.", '["Ä", "B"].'),
        ("{{ question | tojson }}.", '"Warum <b>?".'),
        ("{{ tags | tojson(indent=1) }}.", '[\n "ä",\n "b"\n].'),
        ("{{ nothing | default('-') }}.", "-."),
        ("{{ nothing is defined }}.", "False."),
        ("{% for i in range(2) %}{{ i }}{% endfor %}", "01"),
        ("{%- set q = question -%}{{ q }}!", "Warum <b>?!"),
    ],
)
def test_a_template_gives(template: str, value: Any) -> None:
    assert filled(template) == value
    assert type(filled(template)) is type(value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ n }}", "3"),
        ("{{ tags }}", ["ä", "b"]),
        (" {{ tags }} ", ["ä", "b"]),
        ("{{ question }}\n", "Warum <b>?\n"),
        ("{{ meta }}", '{"k": null, "deep": {"v": 1}}'),
        ("{{ yes }}", "True"),
        ("plain", "plain"),
    ],
)
def test_input_and_instructions_are_text_unless_they_are_a_list(template: str, text: Any) -> None:
    for key in ("input", "instructions"):
        assert filled(template, key) == text


def test_templates_may_be_anywhere_in_a_field() -> None:
    value = {"a": ["{{ n }}", {"b": "{{ question }}!"}, 5], "c": {"d": "plain"}}
    assert filled(value) == {"a": [3, {"b": "Warum <b>?!"}, 5], "c": {"d": "plain"}}


def test_a_column_shadows_what_jinja_calls_by_its_name() -> None:
    row = {"range": "mountains", "row": "second", "self": "me", "_value": "v"}
    assert filled("{{ range }} {{ row }}", row=row) == "mountains second"
    assert filled("{{ range }}", row=row) == "mountains"
    assert filled("{{ row['self'] }}", row={"self": "me"}) == "me"
    assert filled("{{ _value ~ '!' }}", row=row) == "v!"


@pytest.mark.parametrize(
    "template",
    [
        "{{ absent }}",
        "a {{ absent }}",
        "{{ nothing }}",
        "{{ nothing ~ 1 }}",
        "{% if absent %}x{% endif %}",
        "{% for x in absent %}{% endfor %}",
    ],
)
def test_a_column_that_is_missing_or_null_is_a_problem_that_names_it(template: str) -> None:
    with pytest.raises(MissingColumn) as caught:
        filled(template)
    assert caught.value.column in ("absent", "nothing")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ meta.k }}", "gives null"),
        ("x {{ meta.k }}", "gives null"),
        ("{{ meta.gone }}", "has no attribute 'gone'"),
        ("x {{ meta.gone }}", "has no attribute 'gone'"),
        ("x {{ 1 / 0 }}", "division by zero"),
        ("{{ 1 / (n - 3) }}", "division by zero"),
        ("{{ n + question }}", "a number and text"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("x {{ ''.__class__ }}", "unsafe"),
        ("{{ tags.append('c') }}", "unsafe|not safely callable"),
        ("{{ range(10000000) }}", "Range too big"),
        ("{{ 1e308 * 10 }}", "inf"),
        ("{{ [absent] }}", "`absent`"),
        ("{% include 'x' %}", "loader"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply"),
        ("{{ cycler }}", "JSON cannot express"),
    ],
)
def test_any_error_in_a_template_is_the_rows_problem(template: str, message: str) -> None:
    with pytest.raises(RowProblem, match=message):
        filled(template)


@pytest.mark.parametrize(
    "template",
    ["{{ question", "{% if %}", "{{ x | nofilter }}", "{{ x | random }}", "a\n{% end %}"],
)
def test_a_template_that_cannot_be_read_is_an_error_of_the_job(template: str) -> None:
    with pytest.raises(JobError, match=r"request\.text.*cannot be read"):
        Defaults({"text": {"inner": [template]}})


def test_a_row_of_any_form_fills_a_template_for_input(write: Write, read: Read) -> None:
    path = write(
        {"messages": [1], "question": "a", "temperature": 1},
        {"body": {"x": 1}, "url": "no", "question": "b", "temperature": 2},
        {"input": "own", "prompt": "own", "question": "c", "model": "own"},
    )
    request = {"input": "{{ question }}?", "model": "m"}
    survey, rows = read(path, request, send=("temperature",))
    assert [json.loads(row.body) for row in rows] == [
        {"temperature": 1, "input": "a?", "model": "m"},
        {"temperature": 2, "input": "b?", "model": "m"},
        {"input": "c?", "model": "m"},
    ]
    assert survey.sent == ("question", "temperature")
    everything = ("messages", "question", "temperature", "body", "url", "input", "prompt", "model")
    assert survey.carried == everything


def test_plain_text_for_input_is_a_template_too(write: Write, read: Read) -> None:
    _, rows = read(write({"prompt": "own"}), {"input": "the same for all", "model": "m"})
    assert json.loads(rows[0].body)["input"] == "the same for all"


def test_input_may_be_a_list_of_items_with_templates(write: Write, read: Read) -> None:
    items = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "{{ q }}"},
    ]
    _, rows = read(write({"q": "a"}), {"input": items, "model": "m"})
    assert json.loads(rows[0].body)["input"][1]["content"] == "a"


def test_the_rows_own_field_wins_and_its_template_is_not_filled(write: Write, read: Read) -> None:
    request = {"instructions": "Speak {{ language }}", "model": "{{ kind }}-model"}
    path = write(
        {"input": "x", "instructions": "own", "model": "own"},
        {"input": "x", "language": "Greek", "kind": "big"},
    )
    _, rows = read(path, request)
    assert json.loads(rows[0].body) == {"input": "x", "instructions": "own", "model": "own"}
    assert json.loads(rows[1].body)["instructions"] == "Speak Greek"
    assert rows[1].model == "big-model"


def test_a_missing_column_is_a_problem_that_names_the_nearest_and_all_columns(
    write: Write, read: Read
) -> None:
    _, rows = read(
        write({"question": "a", "answer": "b"}, {"question": None, "quesion": "x"}),
        {"input": "{{ quesion }} {{ question }}", "model": "m"},
    )
    assert rows[0].message == (
        "the template's column `quesion` is missing; did you mean `question`? "
        "(the columns are question, answer)"
    )
    assert rows[1].message.startswith("the template's column `question` is null")


def test_the_same_row_gives_the_same_text_in_every_process() -> None:
    script = (
        "from batchrun.inputs.template import Defaults\n"
        "body = {}\n"
        "Defaults({'input': '{{ row }} {{ a | unique | list }}'})"
        ".fill(body, {'a': ['x', 'y', 'z', 'x']})\n"
        "print(body['input'])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert found == {'{"a": ["x", "y", "z", "x"]} ["x", "y", "z"]\n'}
