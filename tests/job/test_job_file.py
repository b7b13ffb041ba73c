from pathlib import Path

import pytest

from batchrun.errors import ErrorKind, JobError
from batchrun.job.job_file import load_job, read_setting
from batchrun.job.sections import TOLD_KINDS


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
            'limits.concurrency is "many"; it must be a number from 1 up or auto',
        ),
        (
            "[input]\npath='x'\n[limits]\nconcurrency = 0",
            "concurrency is 0; it must be a number from 1 up",
        ),
        ("[input]\npath='x'\n[endpoint]\ntimeout_s = nan", "endpoint.timeout_s is nan"),
        ("[input]\npath='x'\n[endpoint.headers]\na = 1", "endpoint.headers[...]: Expected `str`"),
        ("[input]\npath='x'\ncarry = [1]", "input.carry[0]: Expected `str`, got `int`"),
        ("[input]\npath='x'\nid = 1", "input.id: Expected `str | null`, got `int`"),
        ("[input]\npath='x'\n[endpoint]\nmode = 'a'", "it must be plain, stream or background"),
        ("[input]\npath='x'\n[request]\nstream = true", "request.stream is set by batchrun"),
        (
            "[input]\npath='x'\n[retry.words]\nrate_limits = ['a']",
            "words.rate_limits is not a kind of error; did you mean `rate_limit`",
        ),
        (
            "[input]\npath='x'\n[retry.words]\ntimeout = ['a']",
            "words.timeout is not a kind of error",
        ),
        ("[input]\npath='x'\n[retry.words]\nquota = [' ']", "words.quota has an empty text"),
        ("[input]\npath='x'\n[retry.words]\nquota = 'a'", "retry.words"),
        ("[input]\nformat='csv'\npath='x'", "jsonl or parquet"),
        ("[request]\nmodel='m'", "[input] has no path"),
        ("input = 5", "write [input]"),
        ("[input", "not TOML"),
    ],
)
def test_a_wrong_job_file_is_named_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = _job_file(tmp_path, text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


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


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("output.path", "2024", "2024"),
        ("limits.concurrency", "20", 20),
        ("limits.concurrency", "auto", "auto"),
        ("limits.max_failures", "5%", "5%"),
        ("limits.max_failures", "100", 100),
        ("limits.max_cost_usd", "2", 2.0),
        ("endpoint.timeout_s", "0.5", 0.5),
    ],
)
def test_the_text_of_an_option_becomes_what_its_key_takes(
    key: str, text: str, value: object
) -> None:
    assert read_setting(key, text) == value


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("limits.concurrency", "0", 'a number from 1 up or auto, not "0"'),
        ("limits.requests_per_minute", "1.5", 'a number from 1 up, not "1.5"'),
        ("limits.max_failures", "101%", "a share of the last rows such as '5%', not \"101%\""),
        ("limits.max_cost_usd", "nan", 'a number from 0 up, not "nan"'),
        ("endpoint.mode", "fast", 'plain, stream or background, not "fast"'),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_it_must_be(
    key: str, text: str, said: str
) -> None:
    with pytest.raises(JobError) as caught:
        read_setting(key, text)
    assert said in str(caught.value)


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


def test_a_gateways_own_words_are_read_by_kind(tmp_path: Path) -> None:
    text = "[input]\npath='x'\n[retry.words]\nrate_limit = ['pool drained', 'slow']\nquota = ['w']"
    words = load_job(_job_file(tmp_path, text)).retry.words
    assert words == {"rate_limit": ("pool drained", "slow"), "quota": ("w",)}
    assert set(TOLD_KINDS) < set(ErrorKind)


def test_workers_need_ray_and_ray_needs_their_number(tmp_path: Path) -> None:
    path = _job_file(
        tmp_path, '[input]\npath = "x.jsonl"\n[cluster]\nexecutor = "ray"\nworkers = 4\n'
    )
    assert load_job(path).cluster.workers == 4
    # What a command says wins, and what the file says of workers may stay.
    assert load_job(path, {"cluster.executor": "local"}).cluster.executor == "local"
    for settings, message in (
        ({"cluster.executor": "ray"}, "give cluster.workers, such as --workers 4"),
        ({"cluster.workers": 4}, "add --executor ray"),
        ({"cluster.executor": "ray", "cluster.workers": 0}, "a number from 1 up"),
        ({"cluster.cpus_per_worker": 1.5}, "a whole number, or a share below 1"),
        ({"cluster.silence_s": 0.1}, "seconds from 1 to 3,600"),
    ):
        with pytest.raises(JobError, match=message):
            load_job("x.jsonl", settings)


def test_workers_of_a_run_in_a_store_are_silent_for_less_than_its_claim_lasts(
    tmp_path: Path,
) -> None:
    """Else another machine may take the run over while they still send its rows."""
    text = '[input]\npath = "x.jsonl"\n[cluster]\nexecutor = "ray"\nworkers = 4\nsilence_s = 46\n'
    path = _job_file(tmp_path, text)
    with pytest.raises(JobError) as caught:
        load_job(path, {"output.path": "s3://bucket/run"})
    assert f"{path}: cluster.silence_s is 46, and the run is in a store (s3://bucket/run)" in str(
        caught.value
    )
    assert "set silence_s in [cluster] to 45 or less" in str(caught.value)
    in_store = {"output.path": "s3://bucket/run"}
    assert load_job(path, {**in_store, "cluster.silence_s": 45}).cluster.silence_s == 45
    assert load_job(path, {**in_store, "cluster.executor": "local"}).cluster.silence_s == 46
    assert load_job(path, {"output.path": "run"}).cluster.silence_s == 46
