"""Nothing like a setting is dropped in silence, and templates that cannot be meant stop."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.errors import InputError
from batchrun.job.job_file import load_job
from batchrun.runner.plan import Plan, dry_run

USER = [{"role": "user", "content": "hi"}]
ANSWERED = [*USER, {"role": "assistant", "content": "hello"}]
# Settings as four APIs and the servers beside them call them.
SETTINGS = (
    *("temperature", "top_p", "instructions", "service_tier", "store", "metadata", "user"),
    *("reasoning", "text", "tool_choice", "truncation", "include", "max_output_tokens"),
    *("max_tokens", "max_completion_tokens", "reasoning_effort", "verbosity", "response_format"),
    *("n", "seed", "stop", "logit_bias", "frequency_penalty", "presence_penalty", "logprobs"),
    *("system", "stop_sequences", "top_k", "thinking", "mcp_servers"),
    *("generationConfig", "safetySettings", "systemInstruction", "maxOutputTokens"),
    *("min_p", "repetition_penalty", "guided_json", "chat_template_kwargs", "num_predict"),
)
_VALUES: dict[str, Any] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), 5),
    **{name: {"a": "b"} for name in ("metadata", "text", "reasoning")},
    "response_format": {"type": "json_object"},
    "tool_choice": "auto",
    "system": "be brief",
}

Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """The plan of these rows."""

    def plan(*rows: dict[str, Any], **settings: Any) -> Plan:
        path = tmp_path / "prompts.jsonl"
        path.unlink(missing_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        given = {"request.model": "m", "output.path": str(tmp_path / "run"), **dotted}
        return dry_run(load_job(path, given))

    return plan


def said(plan: Plan) -> str:
    return "\n".join(plan.warnings)


def body(plan: Plan) -> Any:
    assert plan.first is not None
    return json.loads(plan.first.body)


@pytest.mark.parametrize("form", [{"prompt": "hi"}, {"messages": USER}, {"q": "hi"}])
def test_settings_that_nothing_sends_are_named_with_rows_and_option(
    planned: Planned, form: dict[str, Any]
) -> None:
    template = {"request.input": "{{ q }}"} if "q" in form else {}
    row = {**form, "service_tier": "flex", "n": 4, "system": "x", "topic": 1}
    other = {**form, **({"q": "ho"} if template else {})}
    plan = planned(row, {**row, "n": None}, {**other, "service_tier": None}, **template)
    assert "service_tier (2 rows): named like settings" in said(plan)
    assert "--send service_tier sends them" in said(plan)
    assert "n (1 row): named like settings of other APIs" in said(plan)
    assert "--instructions '{{ system }}'" in said(plan)
    assert "topic" not in said(plan)
    sends = {"input.send": ["service_tier", "n"], "request.instructions": "{{ system }}"}
    plan = planned(row, **template, **sends)
    assert "not sent" not in said(plan)
    assert (body(plan)["service_tier"], body(plan)["n"]) == ("flex", 4)
    assert body(plan)["instructions"] == "x"
    carried = planned(row, **template, **{"input.carry": ["service_tier", "n", "system"]})
    assert "not sent" not in said(carried)


def test_a_template_over_parquet_names_them_too(tmp_path: Path) -> None:
    table = pa.table({"q": ["a", "b", "c"], "temperature": [0.5, None, 1.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    settings = {
        "request.model": "m",
        "request.input": "{{ q }}",
        "output.path": f"{tmp_path}/r",
    }
    plan = dry_run(load_job(tmp_path / "a.parquet", settings))
    assert "temperature (2 rows)" in said(plan)
    used = {**settings, "request.temperature": "{{ temperature | default(0) }}"}
    assert "temperature" not in said(dry_run(load_job(tmp_path / "a.parquet", used)))


def test_stream_and_background_are_said_to_be_set(planned: Planned) -> None:
    assert "`stream` (1 row) is set by batchrun" in said(
        planned({"prompt": "hi", "stream": True, "background": False})
    )


@pytest.mark.parametrize("lot", range(5))
def test_each_name_of_random_rows_is_in_the_request_a_template_carry_or_a_warning(
    planned: Planned, lot: int
) -> None:
    """100 rows each."""
    for number in range(lot * 100, lot * 100 + 100):
        chance = random.Random(number)
        names = chance.sample(SETTINGS, chance.randrange(1, 9))
        given = {name: _VALUES.get(name, f"value of {name}") for name in names}
        form: dict[str, Any] = chance.choice(
            (
                {"prompt": "hi"},
                {"messages": USER},
                {"input": "hi"},
                {"instruction": "do", "input": ""},
                {"q": "hi"},
                {"conversations": [{"from": "human", "value": "hi"}]},
                {"url": "/v1/chat/completions", "body": {"messages": USER, **given}},
            )
        )
        row = {"custom_id": "a", **form, **({} if "body" in form else given)}
        sent, carried = chance.sample(names, 1), chance.sample(names, 1)
        settings: dict[str, Any] = {}
        if "q" in form:
            settings["request.input"] = "{{ q }} {{ " + names[0] + " }}"
        if chance.random() < 0.3 and "body" not in form:
            settings["input.send"] = sent
        if chance.random() < 0.3 and "body" not in form:
            settings["input.carry"] = carried
        plan = planned(row, **settings)
        words = set(re.findall(r"\w+", said(plan)))
        told = words | {*_sent(body(plan))} | {*settings.get("input.carry", ())}
        told |= {*re.findall(r"\w+", settings.get("request.input", ""))}
        for name in names:
            assert name in told, (number, row, settings, said(plan))


def _sent(request: dict[str, Any]) -> list[str]:
    names = [*request]
    if "max_output_tokens" in request:
        names += ["max_tokens", "max_completion_tokens"]
    if "format" in request.get("text", {}):
        names.append("response_format")
    if "verbosity" in request.get("text", {}):
        names.append("verbosity")
    if "effort" in request.get("reasoning", {}):
        names.append("reasoning_effort")
    if "message.output_text.logprobs" in request.get("include", ()):
        names.append("logprobs")
    if any(type(one) is dict and one.get("role") == "system" for one in request["input"]):
        names.append("system")
    return names


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("Summarise: {question}", "write {{ question }}"),
        ("Summarise: <qestion>", "write {{ question }}"),
        ("question", "write {{ question }}"),
        ("Summarise it", "write {{ question }}"),
        ("", "every row has an empty input"),
        ("{{ missing | default('') }}", "every row has an empty input"),
        ("{{ topic }}", "all 3 rows make the same request"),
    ],
)
def test_a_template_that_says_the_same_for_all_rows_stops_the_plan(
    planned: Planned, tmp_path: Path, prompt: str, said: str
) -> None:
    rows = [{"id": n, "topic": "t", "question": f"What is {n} and why?"} for n in range(3)]
    with pytest.raises(InputError) as raised:
        planned(*rows, **{"request.input": prompt})
    assert said in str(raised.value)
    columns = {"question": [row["question"] for row in rows], "topic": ["t"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError):
        dry_run(
            load_job(
                tmp_path / "a.parquet",
                {"request.input": prompt, "request.model": "m", "output.path": f"{tmp_path}/r"},
            )
        )


def test_the_same_request_may_be_meant(planned: Planned) -> None:
    rows = [{"id": n, "question": f"q{n}"} for n in range(3)]
    with pytest.raises(InputError) as raised:
        planned(*rows, **{"request.input": "A joke, please"})
    (remedy,) = re.findall(r"--set ([\w.]+)='(.*?)'", str(raised.value))
    plan = planned(*rows, **{"request.input": "A joke, please", f"request.{remedy[0]}": remedy[1]})
    assert plan.to_send == 3
    nameless = [{"score": math.nan, "ticket no": n + 1, "question": f"q{n}"} for n in range(3)]
    with pytest.raises(InputError) as raised:
        planned(*nameless, **{"request.input": "A joke, please"})
    (remedy,) = re.findall(r"--set ([\w.]+)='(.*?)'", str(raised.value))
    job = {"request.input": "A joke, please", f"request.{remedy[0]}": remedy[1]}
    plan = planned(*nameless, **job)
    assert plan.to_send == 3
    assert plan.first is not None
    assert b'"metadata":{"row":"row 1"}' in plan.first.body
    same = [{"id": n, "question": "q"} for n in range(3)]
    assert planned(*same, **{"request.input": "{{ question }}"}).to_send == 3


def test_braces_that_look_like_a_column_are_named(planned: Planned) -> None:
    plan = planned({"q": "a", "answer": "b"}, **{"request.input": "{{ q }} {answer} {json}"})
    assert "request.input holds {answer}, which is sent as it is" in said(plan)
    assert "{json}" not in said(plan)


def test_empty_inputs_are_warned_of_in_any_form(planned: Planned) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": " \n"},
        {"body": {"input": ""}},
        {"messages": [{"role": "user", "content": ""}]},
        {"input": []},
    ]
    plan = planned(*rows)
    assert "4 rows, the first prompts.jsonl:2: the input is empty" in said(plan)


def test_answers_that_are_sent_along_are_named_with_a_remedy_that_works(planned: Planned) -> None:
    plan = planned({"messages": ANSWERED}, {"messages": USER})
    assert "1 row, the first prompts.jsonl:1: the last message is the assistant's" in said(plan)
    remedy = re.findall(r"--prompt '(.*?)'", said(plan))[0]
    plan = planned({"messages": ANSWERED}, **{"request.input": remedy})
    assert body(plan)["input"] == USER
    assert "assistant" not in said(plan)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ANSWERED},
        {"input": ANSWERED},
        {"conversations": ANSWERED},
        {"body": {"input": ANSWERED, "model": "m"}},
        {"body": {"messages": ANSWERED, "model": "m"}, "url": "/v1/chat/completions"},
    ],
)
def test_the_remedy_names_what_holds_the_messages(planned: Planned, row: dict[str, Any]) -> None:
    options = re.findall(r"(?:--prompt|--set (\w+)=) ?'(.*?)'", said(planned(row)))
    given = {f"request.{key or 'input'}": value for key, value in options}
    plan = planned(row, **{"request.model": None, **given} if "body" in row else given)
    assert body(plan)["input"] == USER
    assert body(plan)["model"] == "m"


def test_tools_that_are_not_sent_are_not_said_to_be_converted(planned: Planned) -> None:
    tools = [{"name": "f.g", "parameters": {"a": {"type": "str"}}}]
    row = {"query": "q", "tools": json.dumps(tools)}
    plan = planned(row, **{"request.input": "{{ query }}"})
    assert "tools (1 row): named like settings of a request, and not sent" in said(plan)
    assert "converted" not in said(plan)
    plan = planned(row, **{"request.input": "{{ query }}", "input.send": ["tools"]})
    assert "tools in the form of xLAM or BFCL are converted" in said(plan)
    assert '"f_g" for "f.g"' in said(plan)


def test_the_second_tool_s_name_is_looked_at_too(planned: Planned) -> None:
    tools = [{"name": name, "parameters": {"a": {"type": "str"}}} for name in ("f", "g.h")]
    assert '"g_h" for "g.h"' in said(planned({"query": "q", "tools": tools}))


def test_a_misspelt_field_of_the_job_is_named(planned: Planned) -> None:
    plan = planned({"prompt": "x"}, request__temprature=1, request__max_tokens=5)
    assert "did you mean `temperature`?" in said(plan)
    assert "says it with `max_output_tokens`" in said(plan)
    assert body(plan)["temprature"] == 1


def test_the_plan_says_what_rows_were_taken_for(planned: Planned) -> None:
    plan = planned(
        {"instruction": "a"},
        {"conversations": [{"from": "human", "value": "b"}]},
        {"prompt": "c", "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    )
    assert [name.partition(" ")[0] for name in plan.forms] == ["prompt", "Alpaca", "ShareGPT"]
    assert "tools in the form of Anthropic are converted" in said(plan)


def test_fields_of_messages_that_are_not_sent_are_named_with_their_rows(planned: Planned) -> None:
    named = {"role": "user", "name": "ann", "weight": 0, "content": "hi"}
    parts = [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "https://x/a.png", "format": "png"}},
    ]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
    calls = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**call, "extra_content": {"a": 1}}],
        "reasoning_content": "hm",
        "audio": None,
        "annotations": [],
    }
    result = {"role": "tool", "tool_call_id": "c", "name": "f", "content": "ok"}
    rows: list[dict[str, Any]] = [
        {"messages": [named]},
        {"messages": json.dumps([named])},
        {"body": {"messages": [named]}, "url": "/v1/chat/completions"},
        {"prompt": [{"role": "user", "content": parts}]},
        {"messages": [*USER, calls, result, {**USER[0], "type": "message"}]},
        {"conversations": [{"from": "human", "value": "x", "weight": 1}]},
    ]
    plan = planned(*rows)
    (warning,) = [line for line in plan.warnings if "fields of chat messages" in line]
    named_rows = dict(re.findall(r"([\w.]+) \((\d) rows?\)", warning))
    assert named_rows == {
        "name": "3",
        "weight": "4",
        "content.cache_control": "1",
        "content.image_url.format": "1",
        "tool_calls.extra_content": "1",
        "reasoning_content": "1",
    }


def test_of_a_template_s_messages_only_what_is_not_sent_is_named(planned: Planned) -> None:
    named = {"role": "user", "name": "ann", "content": "hi"}
    plan = planned({"messages": [named]}, **{"request.input": "{{ messages }}"})
    assert body(plan)["input"] == [named]  # as it stands there: it is an item already
    assert "fields of chat messages" not in said(plan)
    converted = {**named, "content": [{"type": "text", "text": "hi"}]}
    plan = planned({"messages": [converted]}, **{"request.input": "{{ messages }}"})
    assert "name (1 row): fields of chat messages" in said(plan)
    plan = planned({"messages": [named]}, **{"request.input": "{{ messages[0].name }}"})
    assert "fields of chat messages" not in said(plan)


def test_null_fields_of_structs_in_parquet_are_no_fields(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "a", "name": None}], [{**USER[0], "name": "ann"}]]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": messages}), path)
    plan = dry_run(load_job(path, {"request.model": "m", "output.path": str(tmp_path / "run")}))
    assert "name (1 row): fields of chat messages" in said(plan)
