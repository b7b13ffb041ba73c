"""Samples and variants as a job says them, and what cannot be meant."""

from pathlib import Path
from typing import Any

import pytest

from batchrun.errors import JobError
from batchrun.job.expansion import Expansion
from batchrun.job.job_file import load_job
from batchrun.job.sections import Job


def _job(folder: Path, text: str, settings: dict[str, Any] | None = None) -> Job:
    path = folder / "job.toml"
    path.write_text(f"[input]\npath = 'x.jsonl'\n{text}", encoding="utf-8")
    return load_job(path, settings)


def test_a_job_without_them_makes_one_request_of_each_row(tmp_path: Path) -> None:
    job = _job(tmp_path, "")
    assert (job.expansion, job.variants) == (Expansion(), ())
    assert job.expansion.is_plain


def test_vary_is_a_product_named_by_its_values(tmp_path: Path) -> None:
    text = """
[expand]
samples = 4
[expand.vary]
"model" = ["gpt-4.1", "org/m:free"]
"reasoning.effort" = ["low", "high"]
"temperature" = [0.5, 1]
"store" = [true]
"""
    job = _job(tmp_path, text)
    assert job.expansion.samples == 4
    assert job.expansion.variants[:2] == ("gpt-4.1+low+0.5+true", "gpt-4.1+low+1+true")
    assert len(job.variants) == 8
    assert job.variants[-1].name == "org/m:free+high+1+true"
    assert job.variants[-1].request == {
        "model": "org/m:free",
        "reasoning": {"effort": "high"},
        "temperature": 1,
        "store": True,
    }


def test_the_command_line_varies_one_key_more_or_says_other_values(tmp_path: Path) -> None:
    text = "[expand.vary]\nmodel = ['a', 'b']\n"
    job = _job(tmp_path, text, {"expand.vary": {"seed": [1, 2]}, "expand.samples": 3})
    assert job.expansion == Expansion(3, ("a+1", "a+2", "b+1", "b+2"))
    assert _job(tmp_path, text, {"expand.vary": {"model": ["c"]}}).expansion.variants == ("c",)


def test_an_endpoint_of_its_own_gets_nothing_secret_of_the_jobs(tmp_path: Path) -> None:
    text = """
[endpoint]
base_url = "https://one.example/v1"
api_key_env = "KEY_ONE"
mode = "stream"
timeout_s = 7
[endpoint.headers]
x-secret = "env:ONE"
[[variants]]
name = "other"
endpoint = { base_url = "https://two.example/v1/responses", api_key_env = "KEY_TWO" }
[[variants]]
name = "here"
endpoint = { base_url = "http://127.0.0.1:8000/v1" }
[[variants]]
name = "same"
endpoint = { timeout_s = 9 }
[[variants]]
name = "plain"
"""
    job = _job(tmp_path, text)
    other, here, same, plain = (job.endpoint_of(name) for name in job.expansion.variants)
    assert (other.base_url, other.api_key_env) == ("https://two.example/v1", "KEY_TWO")
    assert (other.headers, other.mode, other.timeout_s) == ({}, "stream", 7)
    assert here.api_key_env == "OPENAI_API_KEY"  # of which loopback needs none
    assert (same.base_url, same.headers, same.timeout_s) == (
        "https://one.example/v1",
        {"x-secret": "env:ONE"},
        9,
    )
    assert plain == job.endpoint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[expand]\nsamples = 0", "expand.samples is 0; it must be a number from 1 to 10,000"),
        ("[expand]\nsample = 2", "unknown key expand.sample; did you mean `samples`"),
        ("[expand.vary]\nmodel = []", "expand.vary.model: give a request key and at least one"),
        ("[expand.vary]\nmodel = ['a b']", 'name is "a b"; give each variant a name in'),
        ("[expand.vary]\nmodel = ['a', 'a']", 'there is another variant "a"'),
        ("[[variants]]\nname = 'a|b'", '[[variants]] 1: name is "a|b"; give it a name of 1 to 64'),
        ("[[variants]]\nname = ''", 'name is ""'),
        (f"[[variants]]\nname = '{'x' * 65}'", "of 1 to 64"),
        ("[[variants]]\ndrop = ['x']", "name is null"),
        ("[[variants]]\nname = 'a'\n[[variants]]\nname = 'a'", "[[variants]] 2: there is another"),
        ("[variants]\nname = 'a'", "variants must be a list of tables: write [[variants]]"),
        ("[[variants]]\nname = 'a'\nrequests = {}", "unknown key requests; did you mean `request`"),
        ("[[variants]]\nname = 'a'\nrequest = 1", "request: Expected `object`"),
        (
            "[[variants]]\nname = 'a'\n[expand.vary]\nmodel = ['b']",
            "[[variants]] and expand.vary (--vary, several --model) both say what differs",
        ),
        (
            "[[variants]]\nname = 'a'\nrequest = { stream = true }",
            "(a): request.stream is set by batchrun itself",
        ),
        ("[expand.vary]\nbackground = [true]", "request.background is set by batchrun itself"),
        (
            "[[variants]]\nname = 'a'\nrequest = { input = 'x' }\n[[variants]]\nname = 'b'",
            "variant a has a template for request.input, and b has none",
        ),
        (
            "[[variants]]\nname = 'a'\nendpoint = { base_url = 'https://x.example/v1' }",
            "endpoint has a base_url and no key; write api_key_env",
        ),
        (
            "[[variants]]\nname = 'a'\nendpoint = { base_url = 'nowhere' }",
            '"nowhere" is not an http or https URL',
        ),
        ("[[variants]]\nname = 'a'\nendpoint = 'x'", "endpoint must be a table"),
        ("[[variants]]\nname = 'a'\nendpoint = { base_ur = 'x' }", "did you mean `base_url`"),
        (
            "[[variants]]\nname = 'a'\n[variants.endpoint.headers]\nAuthorization = 'Bearer x'",
            "variants.endpoint.headers.Authorization holds what looks like a key",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError) as raised:
        _job(tmp_path, text)
    assert message in str(raised.value)


def test_one_value_and_several_of_a_field_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"request\.model is given one value, and expand\.vary"):
        _job(tmp_path, "[expand.vary]\nmodel = ['a', 'b']", {"request.model": "c"})


def test_numbers_go_by_row_then_variant_then_sample() -> None:
    expansion = Expansion(3, ("a", "b"))
    named = [expansion.sample_and_variant(number) for number in range(12)]
    assert named[6:] == named[:6] == [
        (0, "a"), (1, "a"), (2, "a"), (0, "b"), (1, "b"), (2, "b"),
    ]  # fmt: skip
    assert expansion.first_sample(5, "b") == 33
    marks = bytearray([1, 0])
    assert expansion.of_rows(marks) == bytearray([1] * 6 + [0] * 6)
    assert expansion.all_of_row(bytearray([1] * 6 + [1] * 5 + [0])) == bytearray([1, 0])
    assert expansion.any_of_row(bytearray([0] * 6 + [1] + [0] * 5)) == bytearray([0, 1])
    assert expansion.others(1, ["b"], 2) == bytearray([1, 1, 1, 0, 0, 1])
