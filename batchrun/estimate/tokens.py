"""How many tokens a text is: by the model's own vocabulary, or by a stated rule.

The home of bpe-openai, whose vocabularies are in its package: nothing here touches the network.
"""

import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec

from batchrun.pricing.model_names import spellings

O200K, CL100K = "o200k_base", "cl100k_base"
BYTES = "bytes/4"  # the rule where the extra `tokens` is not installed
# Another maker's vocabulary is none of these; measured, texts are up to a fifth more in it.
OTHER_FACTOR = 1.2
_CL100K = re.compile(r"gpt-(4|3\.5|35)($|-)")
_O200K = re.compile(r"(chatgpt-|codex-|computer-use-|o\d($|-)|gpt-(?!(4|3\.5|35)($|-)))")

Count = Callable[[str], int]


def vocabulary_of(model: str | None) -> tuple[str, float]:
    """The vocabulary that a model's texts are counted in, and what the count is multiplied by.

    A model is known by the `spellings` of its name, as it is where its price is looked for.
    """
    for _, name in spellings(model or ""):
        if _CL100K.match(name):
            return CL100K, 1.0
        if _O200K.match(name):
            return O200K, 1.0
    return O200K, OTHER_FACTOR


def is_installed() -> bool:
    """Whether texts can be counted in a vocabulary."""
    return find_spec("bpe_openai") is not None


def counter(vocabulary: str) -> Count:
    """Counts the tokens of a text; lone surrogates, which no tokenizer takes, as question marks."""
    if vocabulary == BYTES:
        return _by_bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import reads data the old way
        from bpe_openai._bindings import (  # noqa: PLC0415 - its face refuses long texts
            tokenizer_for_encoding,
        )

    count: Count = tokenizer_for_encoding(vocabulary).count

    def counted(text: str) -> int:
        try:
            return count(text)
        except UnicodeEncodeError:
            return count(text.encode("utf-8", "replace").decode())

    return counted


def _by_bytes(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return (size + 3) // 4
