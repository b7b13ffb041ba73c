"""The simulator as a model to be measured: right so often, in words and as calls."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun.simulator.knowledge.known_answers import read_abilities
from batchrun.simulator.replies import make_answer
from batchrun.simulator.requests import check_request, read_body
from batchrun.simulator.settings import SimulatorSettings

Start = Callable[..., Awaitable[str]]
Http = aiohttp.ClientSession

SUMS: list[dict[str, Any]] = [
    {"id": f"q{at}", "question": f"How much is {at} and {at * 7}, all told?", "answer": str(at * 8)}
    for at in range(100, 160)
]
BOOK = {
    "type": "function",
    "name": "hotel_book",
    "parameters": {"type": "object", "properties": {"city": {}, "nights": {}, "breakfast": {}}},
}
TRIPS: list[dict[str, Any]] = [
    {
        "id": f"t{at}",
        "question": [[{"role": "user", "content": f"Book {at + 2} nights in both towns of {at}."}]],
        "ground_truth": [
            {
                "hotel.book": {
                    "city": [f"A{at}", f"a{at}"],
                    "nights": [at + 2],
                    "breakfast": [True, ""],
                }
            },
            {"hotel.book": {"city": [f"B{at}"], "nights": [at + 2]}},
        ],
    }
    for at in range(40)
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(settings: SimulatorSettings, before: int = 0, **fields: Any) -> list[dict[str, Any]]:
    """The output items but for reasoning."""
    body = {"model": "gpt-4.1", **fields}
    asked = check_request(read_body(json.dumps(body).encode()))
    known = settings.known_answers()
    answer = make_answer(asked, settings, before, 1_700_000_000.5, before=before, known=known)
    return [item for item in answer.response["output"] if item["type"] != "reasoning"]


def text(settings: SimulatorSettings, before: int = 0, **fields: Any) -> str:
    (item,) = said(settings, before, **fields)
    return str(item["content"][0]["text"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_all_answers_are_right_unless_it_is_said_how_often(tmp_path: Path, name: str) -> None:
    settings = SimulatorSettings(answers=(write(tmp_path / name, SUMS[:10]),))
    for row in SUMS[:10]:
        assert text(settings, input=f"Topic: sums\n\n{row['question']} Be brief.") == row["answer"]
    assert text(settings, input="Something else").startswith("Simulated answer")


def test_the_share_of_right_answers_is_as_asked_by_question_and_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SUMS)
    settings = SimulatorSettings(answers=(path,), right=("0.7,0.25", "other=0"))
    shares = []
    for row in SUMS:
        answers = [text(settings, at, input=row["question"]) for at in range(30)]
        shares.append(mean(answer == row["answer"] for answer in answers))
        assert text(settings, input=row["question"], model="other") != row["answer"]
    assert mean(shares) == pytest.approx(0.7, abs=0.08)
    assert pstdev(shares) == pytest.approx(0.26, abs=0.07)  # and 0.084 by chance alone


def test_wrong_answers_are_wrong_by_any_rule(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Which number comes after four?", "answer": "5"},
        {"question": "Which number comes after fourteen?", "answer": "15"},
        {"question": "Is it so?", "answer": "5.0"},
        {"question": "What is the capital of France?", "answer": ["Paris", "paris, france"]},
    ]
    settings = SimulatorSettings(answers=(write(tmp_path / "a.jsonl", rows),), right=("0",))
    for row in rows:
        for at in range(20):
            wrong = text(settings, at, input=row["question"])
            for right in row["answer"] if isinstance(row["answer"], list) else [row["answer"]]:
                assert right.casefold() not in wrong.casefold()
                assert wrong not in right


@pytest.mark.parametrize(
    ("instructions", "end"),
    [
        ("End with 'Answer:' and the answer.", "\nAnswer: 18"),
        ("Put the number after ####.", "\n#### 18"),
        ("Put it into \\boxed{}.", "\n\\boxed{18}"),
    ],
)
def test_an_answer_stands_where_it_is_asked_for(
    tmp_path: Path, instructions: str, end: str
) -> None:
    rows = [{"question": "How many eggs?", "answer": "16 - 3 = 13\nand 5 more\n#### 18"}]
    settings = SimulatorSettings(answers=(write(tmp_path / "a.jsonl", rows),))
    answers = [
        text(settings, at, input="How many eggs?", instructions=instructions) for at in (0, 1)
    ]
    assert all(answer.endswith(end) for answer in answers)
    assert answers[0] != answers[1]
    assert len(answers[0]) > 20


def test_an_answer_as_json_is_in_its_property(tmp_path: Path) -> None:
    settings = SimulatorSettings(answers=(write(tmp_path / "a.jsonl", SUMS),))
    schema = {
        "type": "object",
        "properties": {"why": {"type": "string"}, "answer": {"type": "integer"}},
        "required": ["why", "answer"],
    }
    format_ = {"format": {"type": "json_schema", "name": "sum", "schema": schema}}
    made = json.loads(text(settings, input=SUMS[0]["question"], text=format_))
    assert made == {"why": "", "answer": 800}


def is_right(calls: list[dict[str, Any]], target: list[dict[str, Any]]) -> bool:
    """By trying all pairings of two calls."""

    def fits(call: dict[str, Any], wanted: dict[str, Any]) -> bool:
        ((name, accepted),) = wanted.items()
        given = json.loads(call["arguments"])
        return (
            call["name"] == name.replace(".", "_")
            and given.keys() <= accepted.keys()
            and all(
                given[one] in values if one in given else "" in values
                for one, values in accepted.items()
            )
        )

    pairs = [(0, 1), (1, 0)]
    return len(calls) == 2 and any(
        fits(calls[0], target[a]) and fits(calls[1], target[b]) for a, b in pairs
    )


def test_calls_are_right_in_any_order_or_wrong_in_one_thing(tmp_path: Path) -> None:
    """The targets are in a file of their own, as BFCL has them."""
    prompts = [{name: row[name] for name in ("id", "question")} for row in TRIPS]
    targets = [{name: row[name] for name in ("id", "ground_truth")} for row in TRIPS]
    paths = write(tmp_path / "a.jsonl", prompts), write(tmp_path / "b.jsonl", targets)
    shares = {}
    orders = set()
    for right in ("1", "0", "0.5"):
        settings = SimulatorSettings(answers=paths, right=(right,))
        verdicts = []
        for row in TRIPS:
            items = said(settings, input=row["question"][0], tools=[BOOK])
            calls = [item for item in items if item["type"] == "function_call"]
            verdicts.append(is_right(calls, row["ground_truth"]))
            if verdicts[-1]:
                orders.add(
                    "A" in calls[0]["arguments"] or "a" in json.loads(calls[0]["arguments"])["city"]
                )
        shares[right] = mean(verdicts)
    assert shares["1"] == 1
    assert shares["0"] == 0
    assert 0.25 < shares["0.5"] < 0.75
    assert orders == {True, False}


async def ask(http: Http, url: str, **fields: Any) -> str:
    body = {"model": "gpt-4.1", "input": "hello", **fields}
    async with http.post(f"{url}/responses", json=body) as reply:
        if not fields.get("stream"):
            answer = await reply.json()
        else:
            events = (await reply.text()).strip().split("\n\n")
            answer = json.loads(events[-1].partition("data: ")[2])["response"]
    while answer["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.01)
        async with http.get(f"{url}/responses/{answer['id']}") as reply:
            answer = await reply.json()
    return str(answer["output"][-1]["content"][0]["text"])


async def test_each_asking_has_another_text_the_same_in_every_run_and_mode(
    start: Start, http: Http
) -> None:
    told = {}
    for mode in ({}, {"stream": True}, {"background": True}):
        url = await start()
        told[str(mode)] = [await ask(http, url, **mode) for _ in range(4)]
    first, *others = told.values()
    assert len(set(first)) == 4
    assert all(other == first for other in others)
    mixed = await start()
    modes: list[dict[str, bool]] = [{"background": True}, {}, {"stream": True}, {}]
    assert [await ask(http, mixed, **mode) for mode in modes] == first
    assert len({await ask(http, mixed, temperature=0) for _ in range(3)}) == 1
    assert len({await ask(http, mixed, temperature=0.7) for _ in range(3)}) == 3


async def test_what_brought_no_answer_is_no_asking(start: Start, http: Http) -> None:
    plain, faulty = await start(), await start(fault_rates={"503_json": 0.7})
    told = [await ask(http, plain) for _ in range(3)]
    retried: list[str] = []
    while len(retried) < 3:
        try:
            retried.append(await ask(http, faulty))
        except (KeyError, TypeError):
            continue
    assert retried == told


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ("1.2", "between 0 and 1"),
        ("much", "write a probability"),
        ("0.7,0.1,3", "write a probability"),
        ("0.9,0.3", "must be below 0.300"),
        ("0.9,-1", "must be below"),
    ],
)
def test_what_right_cannot_be_is_said(right: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_abilities([right])


def test_a_file_of_answers_that_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="right needs answers"):
        SimulatorSettings(right=("0.5",))
    for content, words in (
        (None, "cannot be read"),
        ("[1]\n", "not a JSON object"),
        ("{", "cannot be read"),
        ('{"question": "Why?"}\n', "no row of the answers has a question and a target"),
    ):
        path = tmp_path / "a.jsonl"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=words):
            SimulatorSettings(answers=(str(path),)).known_answers()


def test_a_run_against_the_embedded_simulator_knows_the_answers(
    batchrun: Any, tmp_path: Path
) -> None:
    write(tmp_path / "p.jsonl", SUMS)
    run = (
        "run",
        "p.jsonl",
        "--prompt",
        "{{ question }}",
        "--model",
        "gpt-4.1",
        "--carry",
        "answer",
    )
    words = (*run, "--simulate", "--answers", "p.jsonl")
    assert batchrun(*words, "--right", "0.5").returncode == 0
    rows = pq.read_table(tmp_path / "runs" / "p-simulated" / "responses").to_pylist()
    share = mean(row["output_text"] == row["answer"] for row in rows)
    assert 0.25 < share < 0.75
    for more, said in (
        (("--answers", "p.jsonl"), "add --simulate"),
        (("--simulate", "--answers", "nowhere.jsonl", "-o", "other"), "nowhere.jsonl"),
        (("--simulate", "--right", "0.5", "-o", "other"), "right needs answers"),
        (("--simulate", "--answers", "p.jsonl", "--right", "7", "-o", "other"), "between 0 and 1"),
    ):
        done = batchrun(*run, *more)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert not (tmp_path / "other").exists()
    done = batchrun("simulate", "--port", "0", "--answers", "nowhere.jsonl")
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stderr
