from pathlib import Path

import pytest

from batchrun.errors import JobError
from batchrun.job.job_file import load_job, user_file, with_user_prices
from batchrun.job.sections import PriceJob
from batchrun.runner.plan import known_prices

SHAPE = """\
[pricing."house-model"]
input = 2
output = 8.5
cached_input = 0.5

[pricing.o3]
factor = 0.5

[aliases]
"gpt-4.1-prod" = "gpt-4.1"
"""


def write(path: Path, text: str) -> Path:
    file = path / "batchrun" / "prices.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_the_user_s_file_has_the_shape_of_a_job_s_sections(tmp_path: Path) -> None:
    pricing, aliases = with_user_prices({}, {}, write(tmp_path, SHAPE))
    assert aliases == {"gpt-4.1-prod": "gpt-4.1"}
    assert pricing == {
        "house-model": PriceJob(input=2.0, output=8.5, cached_input=0.5),
        "o3": PriceJob(factor=0.5),
    }
    job = tmp_path / "job.toml"
    job.write_text('[input]\npath = "a.jsonl"\n' + SHAPE)
    loaded = load_job(job)
    assert (loaded.pricing, loaded.aliases) == (pricing, aliases)


def test_for_a_name_that_the_job_mentions_the_job_wins(tmp_path: Path) -> None:
    file = write(tmp_path, SHAPE)
    own = PriceJob(input=1.0, output=1.0)
    pricing, aliases = with_user_prices(
        {"o3": own, "gpt-4.1-prod": own}, {"house-model": "o3"}, file
    )
    assert pricing == {"o3": own, "gpt-4.1-prod": own}
    assert aliases == {"house-model": "o3"}


def test_it_is_looked_for_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_file() == tmp_path / "batchrun" / "prices.toml"
    for unset in ("", "relative/folder"):  # the standard wants a relative one to be ignored
        monkeypatch.setenv("XDG_CONFIG_HOME", unset)
        assert user_file() == tmp_path / "home" / ".config" / "batchrun" / "prices.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert user_file() == tmp_path / "home" / ".config" / "batchrun" / "prices.toml"


def test_a_run_knows_the_user_s_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    job = load_job("a.jsonl")
    assert known_prices(job).find("house-model", None, 0) is None
    write(tmp_path, SHAPE)
    price = known_prices(job).find("house-model", None, 0)
    assert price is not None
    assert price.priced_as == "house-model"
    alias = known_prices(job).find("gpt-4.1-prod", None, 0)
    assert alias is not None
    assert alias.priced_as == "gpt-4.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[price]\n", r"unknown section \[price\]; did you mean `pricing`\?"),
        ("[input]\n", r"unknown section \[input\]"),
        ("aliases = 1\n", r"aliases must be a table: write \[aliases\]"),
        ("pricing = []\n", r"pricing must be a table: write \[pricing\]"),
        ('[pricing."m"]\ninput = 1\n', r'\[pricing."m"\]: has input but no output'),
        (
            '[pricing."m"]\nfactor = -1\n',
            r'\[pricing."m"\]: factor is -1; it must be a number from 0 up',
        ),
        ('[pricing."m"]\ninputs = 1\n', r'\[pricing."m"\]: unknown key inputs'),
        (
            '[pricing."m"]\ninput = "1"\noutput = 1\n',
            r"""\[pricing."m"\]: input is "1"; it must be a number from 0""",
        ),
        ('[aliases]\n"m" = 4\n', r'\[aliases\] "m" is 4; it must be the name of a model'),
        ('[aliases]\n"m" = ""\n', r"\[aliases\] \"m\" is \"\"; it must be the name of a model"),
        ("[aliases]\ngpt-4.1 = 'o3'\n", r'gpt-4.1: put the name in quotes, such as "gpt-4.1"'),
        (
            '[pricing."m"]\ninput = 1\noutput = 1\n[aliases]\n"m" = "o3"\n',
            r'"m" has a price and an alias',
        ),
        ("[pricing\n", r"not TOML: .*line 1"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(JobError, match=message) as raised:
        with_user_prices({}, {}, file)
    assert str(file) in str(raised.value)
    job = tmp_path / "job.toml"
    job.write_text('[input]\npath = "a.jsonl"\n' if text != "[input]\n" else "")
    if "unknown section" not in message:
        job.write_text(text if "must be a table" in message else text + '[input]\npath = "a"\n')
        with pytest.raises(JobError, match=message):
            load_job(job, {"input.path": "a.jsonl"})


def test_the_file_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "prices.toml", tmp_path / "file" / "prices.toml"):
        assert with_user_prices({}, {"a": "b"}, path) == ({}, {"a": "b"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").mkdir()
    with pytest.raises(JobError, match=r"prices.toml: cannot be read"):
        with_user_prices({}, {}, tmp_path / "prices.toml")
    (tmp_path / "other.toml").write_bytes(b"\xff")
    with pytest.raises(JobError, match=r"other.toml: not UTF-8 text \(byte 0\)"):
        with_user_prices({}, {}, tmp_path / "other.toml")
