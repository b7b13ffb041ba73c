"""The options that a message advises, to be typed by the test that holds the message."""

import re
import shlex

_VALUE = r"""(?:[ =](?:'[^']*'|(?!-)[^\s,;()]+))?"""
_OPTION = rf"--(?:skip-bad-rows|append|rerun-changed|(?:carry|type|id|send|format){_VALUE})"


def remedies(message: str) -> list[list[str]]:
    """Each as words: options that follow each other belong together."""
    text = " ".join(message.split())
    found = [shlex.split(part) for part in re.findall(rf"{_OPTION}(?: {_OPTION})*", text)]
    return [words for words in found if words not in (["--carry"], ["--type"])]


def remedy(message: str, option: str) -> list[str]:
    """The one that begins with this option."""
    (words, *_) = [words for words in remedies(message) if words[0] == option]
    return words
