"""What opens stores and the Hub, for processes of a run on other machines.

Variables of the driver's environment travel with a call, and are set in the worker's. Files that
they name, and roles, are those of each machine.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from batchrun.errors import JobError, StoreError
from batchrun.remote.object_stores import RemoteError
from batchrun.remote.run_link import place_of, read_link

Access = Mapping[str, str | None]  # by variables; null: not to be set

# Variables that belong together: one of another machine among them would make them useless.
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AZURE_SECRETS = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
_HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_FILES = (  # names of files, which another machine may not have
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
)
_GROUPS = (
    (*_AWS, "AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    (*_AZURE_SECRETS, "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
    _HUB,
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("STORAGE_EMULATOR_HOST",),
    ("HF_ENDPOINT",),
    *((name,) for name in _FILES),
)
SECRETS = (*_AWS, *_AZURE_SECRETS, *_HUB)  # variables that hold some


def own_access() -> Access:
    """What this process has of it. Whole groups: what it lacks in one it has, others lack too."""
    found: dict[str, str | None] = {}
    for group in _GROUPS:
        if any(os.environ.get(name) for name in group):
            found |= {name: os.environ.get(name) for name in group}
    return found


def take_access(access: Access) -> None:
    """This process, and those that it starts, have it from now on: of files those that are here."""
    for name, value in access.items():
        if value is None:
            os.environ.pop(name, None)
        elif name not in _FILES or Path(value).exists():
            os.environ[name] = value


def why_not_written(folder: Path, token: str) -> str | None:
    """Why this process cannot write to the store of a folder's run, said within 30 s.

    Null where it can, and for a run that is in none. `token`: of the driver.
    """
    try:
        link = read_link(folder)
        if link is None:
            return None
        store, prefix = place_of(link, is_first=True)
        # As a part that is not whole yet: no reader looks at it, and the next command deletes it.
        key = f"{prefix}responses/.probe-{token}-{os.uname().nodename}-{os.getpid()}.tmp"
        store.write(key, b"")
        store.delete(key)
    except (JobError, RemoteError, StoreError) as error:
        return str(error)
    return None
