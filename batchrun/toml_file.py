"""A TOML file read; what is wrong with it is told by its path."""

import tomllib
from pathlib import Path
from typing import Any

from batchrun.errors import JobError


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The file's tables; `what` names its kind in messages. Raises `JobError`."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such {what}; check the path") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not TOML: {error}") from error


def readable(message: str) -> str:
    """A message of msgspec with the key first."""
    text, _, path = message.partition(" - at `$.")
    return f"{path.rstrip('`')}: {text}" if path else text
