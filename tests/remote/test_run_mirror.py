"""What is read of a run in a store while its parts are being replaced."""

from typing import Any

import pytest

from batchrun.remote.object_stores import RemoteError, RemoteObject
from batchrun.remote.run_mirror import _names_and_intents


class _Busy:
    """A store in which so many intents end as soon as they were listed."""

    def __init__(self, ends: int) -> None:
        self._ends, self.listings = ends, 0

    def name(self, key: str) -> str:
        return f"s3://bucket/{key}"

    def listing(self, _prefix: str) -> list[RemoteObject]:
        self.listings += 1
        names = ["run/responses/w0-000001.parquet", f"run/journal/w0-00000{self.listings}.intent"]
        return [RemoteObject(name, 10, self.listings) for name in names]

    def read(self, key: str) -> bytes | None:
        is_over = key.endswith(".intent") and self.listings <= self._ends
        return None if is_over else b'{"puts": ["responses/w0-000002.parquet"], "deletes": []}'


def test_intents_that_end_while_they_are_read_are_listed_again_and_not_for_ever() -> None:
    store: Any = _Busy(3)
    names, intents = _names_and_intents(store, "run/")
    assert (store.listings, [*intents]) == (4, ["journal/w0-000004.intent"])
    assert names["responses/w0-000001.parquet"].stamp == 4
    store = _Busy(10**6)
    with pytest.raises(RemoteError, match="s3://bucket/run/: its parts change faster"):
        _names_and_intents(store, "run/")
    assert store.listings == 10
