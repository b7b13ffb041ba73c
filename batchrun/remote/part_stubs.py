"""Stubs: small files in place of parts that are in a store.

Code that lists, renames or deletes the parts of a run directory handles stubs as parts; code that
reads a part uses `part_file`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from batchrun.remote.object_stores import RemoteError, store_of
from batchrun.remote.remote_files import ObjectReader
from batchrun.remote.run_link import write_durably

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_HEAD = b"batchrun: this part is in a store\n"  # no Parquet file begins like this
_MOST_BYTES = 16_384


class Stub(Struct, frozen=True):
    """Where a part is, and which version of it."""

    url: str
    size: int
    stamp: int  # nanoseconds since 1970 by the store's clock, when it was written


def write_stub(path: Path, stub: Stub, *, is_durable: bool = True) -> None:
    """Raises `OSError`."""
    data = _HEAD + msgspec.json.encode(stub)
    if is_durable:
        write_durably(path, data)
    else:
        path.write_bytes(data)


def read_stub(path: Path) -> Stub | None:
    """The stub; None for a part that is here. Raises `OSError`."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES) if file.read(len(_HEAD)) == _HEAD else None
    return None if data is None else msgspec.json.decode(data, type=Stub)


def part_file(path: Path) -> Any:
    """The file from which pyarrow can read the part. Raises `OSError`."""
    stub = read_stub(path)
    return path if stub is None else pa.PythonFile(ObjectReader(stub.url, stub.size), "r")


def dataset_of(paths: Sequence[Path], schema: pa.Schema) -> "ds.Dataset":
    """All parts, here or in a store, as one lazy table. Raises `OSError`."""
    import pyarrow.dataset as ds  # noqa: PLC0415 - imports pandas where it is installed: 0.3 s

    local, remote = [], dict[Any, list[str]]()
    for path in paths:
        stub = read_stub(path)
        if stub is None:
            local.append(str(path))
        else:
            store, key = store_of(stub.url)
            remote.setdefault(store, []).append(key)
    found = [
        ds.dataset(store.paths(keys), schema=schema, format="parquet", filesystem=store.files)
        for store, keys in remote.items()
    ]
    if local or not found:
        found.append(ds.dataset(local, schema=schema, format="parquet"))
    return found[0] if len(found) == 1 else ds.dataset(found)


def is_replaced(path: Path) -> bool:
    """Whether the store has another version of a part than its stub says: its new stub comes soon.

    To be asked where a part could not be read. Raises `OSError`.
    """
    try:
        stub = read_stub(path)
        if stub is None:
            return False
        store, key = store_of(stub.url)
        found = store.find(key)
    except FileNotFoundError:
        return True
    except RemoteError:
        return False
    return found is None or (found.size, found.stamp) != (stub.size, stub.stamp)


def part_size(path: Path) -> int:
    """The size of a part in bytes, here or in a store. Raises `OSError`."""
    stub = read_stub(path)
    return path.stat().st_size if stub is None else stub.size
