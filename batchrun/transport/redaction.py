"""Secrets taken out of what a server says, before anybody stores or shows it.

Servers and gateways echo headers in their errors, as JSON, in a URL, in a page. A secret is found
in each of these spellings; one shorter than eight characters is a placeholder and stays.
"""

import re
from collections.abc import Iterable

MASK = "***"
_SHORTEST = 8
_PROBE = 24  # letters of a secret that are looked for first
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]+")  # what no encoding writes in another way


class Redactor:
    """Hides some secrets."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = tuple(secrets)
        self._later: tuple[str, ...] = ()
        self._hide(self._secrets)

    def add(self, secret: str) -> None:
        """Hides one more, in place of the last but one that was added."""
        self._later = (*self._later[-1:], secret)
        self._hide((*self._secrets, *self._later))

    def _hide(self, secrets: Iterable[str]) -> None:
        # A value such as `Bearer KEY` may come back without its first word.
        words = {word for value in secrets for word in (value, *value.split()[-1:])}
        hidden = sorted((word for word in words if len(word) >= _SHORTEST), key=len, reverse=True)
        # A run of letters that each spelling holds: most answers are passed over by looking for it.
        self._probes = tuple(_longest_plain(word)[:_PROBE].encode() for word in hidden)
        self._spelled = re.compile("|".join(map(_spellings, hidden)).encode()) if hidden else None

    def hide(self, body: bytes) -> bytes:
        """The bytes, each secret masked; the very same bytes where there is none."""
        if self._spelled is None:
            return body
        for probe in self._probes:
            if probe in body:
                return self._spelled.sub(MASK.encode(), body)
        return body

    def hide_in(self, text: str) -> str:
        """The same for text."""
        return self.hide(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")


def _longest_plain(secret: str) -> str:
    return max(_PLAIN.findall(secret), key=len, default="")


def _spellings(secret: str) -> str:
    return "".join(
        letter if letter.isascii() and letter.isalnum() else _spellings_of(letter)
        for letter in secret
    )


def _spellings_of(letter: str) -> str:
    """As it is; as JSON, a URL and HTML write it."""
    number = ord(letter)
    coded = "".join(f"%{byte:02X}" for byte in letter.encode())
    return (
        rf"(?:\\*{re.escape(letter)}|(?i:\\+u{number:04x}|{coded}|&#{number};|&#x0*{number:x};)"
        + {'"': "|&quot;", "&": "|&amp;", "<": "|&lt;", ">": "|&gt;", " ": r"|\+"}.get(letter, "")
        + ")"
    )
