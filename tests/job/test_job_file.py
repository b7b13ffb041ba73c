from pathlib import Path

import pytest

from batchrun.errors import JobError
from batchrun.job.job_file import load_job
from batchrun.job.sections import api_key, header_values, key_in_words, refuse_plain_http

KEY = "sk-" + "a1" * 20


def _job_file(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_prompt_set_alone_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    job = load_job("data/prompts.jsonl.gz")
    assert (job.name, job.input.path) == ("prompts", "data/prompts.jsonl.gz")
    assert job.endpoint.base_url == "https://api.openai.com/v1"
    assert (job.limits.concurrency, job.retry.max_attempts) == ("auto", 6)


def test_the_base_url_comes_from_the_environment_and_may_end_in_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1/responses/")
    assert load_job("x.jsonl").endpoint.base_url == "http://127.0.0.1:8000/v1"


def test_paths_are_relative_to_the_job_file_and_options_win(tmp_path: Path) -> None:
    text = '[input]\npath = "set.jsonl"\n[request]\nmodel = "a"\n[output]\npath = "out"\n'
    job = load_job(_job_file(tmp_path, text), {"request.model": "b", "request.reasoning.effort": 1})
    assert job.input.path == str(tmp_path / "set.jsonl")
    assert job.output.path == str(tmp_path / "out")
    assert job.request == {"model": "b", "reasoning": {"effort": 1}}
    assert job.name == "job"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[input]\npath='x'\n[limits]\nconcurrancy = 3", "did you mean `concurrency`"),
        ("[input]\npath='x'\n[limit]\nconcurrency = 3", "did you mean `limits`"),
        (
            "[input]\npath='x'\n[limits]\nconcurrency = 'many'",
            "limits.concurrency is 'many'; it is a number from 1, or 'auto'",
        ),
        ("[input]\npath='x'\n[limits]\nconcurrency = 0", "at least 1"),
        ("[input]\npath='x'\n[endpoint]\ntimeout_s = nan", "endpoint.timeout_s is nan"),
        ("[input]\npath='x'\n[request]\nstream = true", "request.stream is set by batchrun"),
        ("[input]\nformat='csv'\npath='x'", "jsonl or parquet"),
        ("[request]\nmodel='m'", "[input] has no path"),
        ("input = 5", "write [input]"),
        ("[input", "not TOML"),
    ],
)
def test_a_wrong_job_file_is_told_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = _job_file(tmp_path, text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"[endpoint]\napi_key = '{KEY}'",
        f"[endpoint]\napi_key_env = '{KEY}'",
        f"[endpoint.headers]\nAuthorization = 'Bearer {KEY}'",
        "[endpoint.headers]\napi-key = 'plain-looking'",
        f"[endpoint.headers]\nX-Note = '{KEY}'",
        "[endpoint.query]\ntoken = 'plain-looking'",
        f"[request]\nmodel = 'm'\nuser = '{KEY}'",
    ],
)
def test_a_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(_job_file(tmp_path, "[input]\npath = 'x'\n" + text))
    assert "holds what looks like a key" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "plain-looking" not in str(caught.value)


def test_headers_may_name_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[input]\npath = 'x'\n[endpoint.headers]\napi-key = 'env:TEAM_KEY'\nX-Team = 'blue'\n"
    job = load_job(_job_file(tmp_path, text))
    monkeypatch.setenv("TEAM_KEY", "hidden")
    assert header_values(job.endpoint) == {"api-key": "hidden", "X-Team": "blue"}
    monkeypatch.delenv("TEAM_KEY")
    with pytest.raises(JobError, match="TEAM_KEY is not set"):
        header_values(job.endpoint)


def test_paths_may_begin_as_keys_do() -> None:
    for path in ("hf_openassistant_guanaco_2024.jsonl", "runs/sk-learn-benchmark-2024/x.parquet"):
        assert load_job(path, {"output.path": f"runs/{path}"}).input.path == path


def test_options_hold_no_key_either() -> None:
    for name in ("request.user", "request.metadata.a", "endpoint.base_url", "endpoint.api_key_env"):
        with pytest.raises(JobError, match="what looks like a key") as caught:
            load_job("x.jsonl", {name: KEY})
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"X Team": "blue"}, "'X Team' is no name of a header"),
        ({"X-Team:": "blue"}, "is no name of a header"),
        ({"": "blue"}, "is no name of a header"),
        ({"X-Team": "a\r\nX-More: 1"}, "header X-Team: its value holds characters"),
        ({"X-Team": "\x1b[31m"}, "header X-Team: its value holds characters"),
    ],
)
def test_a_header_that_no_server_would_read_is_refused(headers: dict[str, str], said: str) -> None:
    job = load_job("x.jsonl", {"endpoint.headers": headers})
    with pytest.raises(JobError) as caught:
        header_values(job.endpoint)
    assert said in str(caught.value)


def test_plain_http_is_for_this_machine_or_for_no_secrets() -> None:
    far, none = {"endpoint.base_url": "http://example.org/v1"}, {"endpoint.api_key_env": "none"}
    secret = {"endpoint.headers": {"X-Team": "env:TEAM"}}
    for settings in (far, {**far, **none, **secret}, {"endpoint.base_url": "http://127.0.0.1.org"}):
        with pytest.raises(JobError, match="--insecure-http"):
            refuse_plain_http(load_job("x", settings).endpoint)
    for settings in (
        {**far, **none},
        {"endpoint.base_url": "https://example.org/v1"},
        {"endpoint.base_url": "http://localhost:8080/v1", **secret},
        {"endpoint.base_url": "http://[::1]/v1"},
    ):
        refuse_plain_http(load_job("x", settings).endpoint)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/v1",
        "example.org/v1",
        "http://",
        "http://[::1",
        "http://user:secret@example.org/v1",
        "http://example.org/v1?key=1",
        "http://example.org:99999/v1",
        "http://exa mple.org",
    ],
)
def test_a_bad_url_is_refused_and_its_password_not_repeated(url: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job("x.jsonl", {"endpoint.base_url": url})
    assert "base URL" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_key_is_needed_but_not_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    far = load_job("x", {"endpoint.base_url": "https://example.org/v1"}).endpoint
    named = load_job(
        "x", {"endpoint.base_url": "https://example.org/v1", "endpoint.api_key_env": "SOME_KEY"}
    ).endpoint
    with pytest.raises(JobError, match="SOME_KEY is not set"):
        api_key(named)
    assert key_in_words(named) == "key from $SOME_KEY, which is not set: a run needs it"
    monkeypatch.setenv("SOME_KEY", "k-1")
    assert api_key(named) == "k-1"
    assert key_in_words(named) == "key from $SOME_KEY"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JobError, match="OPENAI_API_KEY"):
        api_key(far)
    for host in ("127.0.0.1:80", "localhost", "[::1]:8080"):
        near = load_job("x", {"endpoint.base_url": f"http://{host}/v1"}).endpoint
        assert api_key(near) is None
        assert key_in_words(near) == "without a key"
    none = load_job(
        "x", {"endpoint.base_url": "https://example.org/v1", "endpoint.api_key_env": "none"}
    ).endpoint
    assert api_key(none) is None


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/b.jsonl", "b"),
        ("a/b.ndjson.zst", "b"),
        ("b.parquet", "b"),
        ("folder/", "folder"),
        ("-", ""),
        ("a/*.jsonl", ""),
        ("v1.2.jsonl", "v1.2"),
    ],
)
def test_a_run_is_named_after_its_source(source: str, name: str) -> None:
    assert load_job(source).name == name
