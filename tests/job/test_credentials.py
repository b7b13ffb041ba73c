"""Keys and secret headers: where they are read, and where they are refused."""

from pathlib import Path

import pytest

from batchrun.errors import JobError
from batchrun.job.credentials import (
    api_key,
    header_values,
    key_in_words,
    key_of_command,
    notify_urls,
    refuse_plain_http,
)
from batchrun.job.job_file import load_job

KEY = "sk-" + "a1" * 20


def _job_file(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


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


@pytest.mark.parametrize(
    "url",
    [
        "mailto://me:ThisIsTheKey@example.com",
        "json://example.com/?+Authorization=ThisIsTheKey",
        "form://example.com/?-api_key=ThisIsTheKey",
        "mailtos://example.com/?user=me&pass=ThisIsTheKey",
        f"ntfys://{KEY}@example.com/ThisIsTheKey",
    ],
)
def test_an_address_that_shows_a_secret_is_refused_and_not_repeated(
    tmp_path: Path, url: str
) -> None:
    file = _job_file(tmp_path, f"[input]\npath = 'x'\n[notify]\nurls = ['json://a', '{url}']")
    for source, settings in ((file, {}), ("x.jsonl", {"notify.urls": (url,)})):
        with pytest.raises(JobError, match=r"notify\.urls holds a secret\..* write env:NAME") as no:
            load_job(source, settings)
        assert "ThisIsTheKey" not in str(no.value)
        assert KEY not in str(no.value)


@pytest.mark.parametrize(
    "urls", [["ThisIsTheKey"], ["json://a", "env:ThisIsTheKey/x"], "json://ThisIsTheKey", [1], [""]]
)
def test_what_is_no_address_is_refused_and_not_repeated(urls: object) -> None:
    with pytest.raises(JobError, match=r"notify\.urls") as caught:
        load_job("x.jsonl", {"notify.urls": urls})
    assert "ThisIsTheKey" not in str(caught.value)


def test_addresses_come_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["json://localhost/a", "env:OPS", "mailto://localhost?from=a@example.com"]
    job = load_job("x.jsonl", {"notify.urls": urls})
    monkeypatch.setenv("OPS", " slack://a/b/c ")
    assert notify_urls(job) == {urls[0]: urls[0], "env:OPS": "slack://a/b/c", urls[2]: urls[2]}
    monkeypatch.setenv("OPS", " ")
    with pytest.raises(JobError, match="OPS is not set"):
        notify_urls(job)


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
        ({"X Team": "blue"}, '"X Team" cannot be the name of a header'),
        ({"X-Team:": "blue"}, "cannot be the name of a header"),
        ({"": "blue"}, "cannot be the name of a header"),
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


def test_a_command_is_the_one_source_of_the_key() -> None:
    command = {"endpoint.api_key_command": "print-key"}
    endpoint = load_job("x", command).endpoint
    assert key_in_words(endpoint) == "key from the command in endpoint.api_key_command"
    for more, said in (
        ({"endpoint.api_key_env": "SOME_KEY"}, "so does endpoint.api_key_env"),
        ({"endpoint.headers": {"authorization": "env:X"}}, "so does a header Authorization"),
        ({"endpoint.api_key_command": " "}, "is empty"),
    ):
        with pytest.raises(JobError, match=said):
            load_job("x", {**command, **more})
    with pytest.raises(JobError, match="give it with --api-key-command"):
        load_job("x", {"endpoint.api_key_ttl_s": 60.0})
    with pytest.raises(JobError, match="--insecure-http"):
        refuse_plain_http(
            load_job("x", {**command, "endpoint.base_url": "http://example.org/v1"}).endpoint
        )


def test_a_command_has_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchrun.job.credentials.COMMAND_S", 0.2)
    with pytest.raises(JobError, match="printed no key within"):
        key_of_command("sleep 60")
