"""A model's name as gateways write it, and as price lists may: `openai/gpt-4.1-data` is `gpt-4.1`.

These are all the rules: what stands before a slash names a provider; a whole date at the end names
a snapshot; `-data` at the end is how a gateway marks that it may keep what is sent.
"""

import re
from collections.abc import Iterator

_END = re.compile(r"([-@]\d{4}-\d{2}-\d{2}|[-@]\d{8}|-data)$")


def spellings(name: str) -> Iterator[tuple[str | None, str]]:
    """The provider, where one is named, and the model; first as it stands, then ever shorter.

    At each length: the whole name; what follows the first slash, of the provider before it; what
    follows the last slash, of any provider.
    """
    while name:
        yield None, name
        provider, slash, model = name.partition("/")
        if slash:
            if provider and model:
                yield provider, model
            last = name.rpartition("/")[2]
            if last:
                yield None, last
        shorter = _END.sub("", name)
        if shorter == name:
            return
        name = shorter
