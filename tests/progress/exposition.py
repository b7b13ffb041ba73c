"""A strict reader of Prometheus' text format 0.0.4, written from its specification.

Besides the grammar it holds what node exporter refuses: a sample twice, a metric in two groups, a
sample without HELP and TYPE before it. Names follow the conventions for metrics.
"""

import re

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
_HELP = re.compile(rf"# HELP ({_NAME}) ((?:[^\\\n]|\\[\\n])+)")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped)")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)?\}})? (\S+)")
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def samples_of(text: bytes) -> Samples:
    """All samples by name and labels. Raises `AssertionError` where the text is not valid."""
    assert text.endswith(b"\n")
    samples: Samples = {}
    types: dict[str, str] = {}
    helped, current = set(), ""
    for line in text.decode("utf-8").split("\n")[:-1]:
        if found := _HELP.fullmatch(line):
            current = found[1]
            assert current not in helped, f"{current}: in two groups"
            helped.add(current)
        elif found := _TYPE.fullmatch(line):
            assert found[1] == current, line
            assert found[1] not in types, line
            types[current] = found[2]
        else:
            found = _SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == current, f"{line}: outside of its group"
            assert current in types, line
            labels = tuple((name, _unescaped(value)) for name, value in _labels(found[2] or ""))
            assert len(dict(labels)) == len(labels), line
            key = (found[1], tuple(sorted(labels)))
            assert key not in samples, f"{line}: twice"
            samples[key] = float(found[7])
    assert helped == types.keys() == {name for name, _ in samples}
    for name, kind in types.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert name == name.lower()
        assert not name.endswith(("_ms", "_s", "_count", "_sum", "_bucket")), name
    return samples


def _labels(text: str) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in re.finditer(_LABEL, text)]


def _unescaped(value: str) -> str:
    return re.sub(r'\\[\\"n]', lambda found: _ESCAPES[found[0]], value)
