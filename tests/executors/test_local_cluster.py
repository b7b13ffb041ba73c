"""A cluster for one run: what its processes get."""

import sys
from pathlib import Path

import pytest

from batchrun.executors.local_cluster import LocalCluster, _words

# In place of the process that starts Ray: says which variables it got, and waits for its end.
_STANDS_IN = """#!/bin/sh
env > "$6/variables"
echo '{"address": "127.0.0.1:1"}'
read word
"""


@pytest.mark.parametrize(("said", "kept"), [(None, "0"), ("1", "1"), ("0", "0")])
def test_usage_statistics_of_ray_are_off_unless_the_user_has_turned_them_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, kept: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # so that they are as before afterwards
    monkeypatch.setenv("A_SECRET", "it")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", said or "")
    if said is None:
        monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    stands_in = tmp_path / "python"
    stands_in.write_text(_STANDS_IN)
    stands_in.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stands_in))
    LocalCluster(tmp_path, 1, ("A_SECRET",)).close()
    variables = (tmp_path / "variables").read_text().splitlines()
    assert [one for one in variables if "USAGE_STATS" in one] == [f"RAY_USAGE_STATS_ENABLED={kept}"]
    assert "A_SECRET=it" not in variables
    # No word of the command is stronger than the variable.
    assert not [one for one in _words(Path("folder"), "1") if "usage" in one]
