"""Templates that want out of their sandbox, or never end."""

import pytest

from batchrun.inputs.rows import RowProblem
from batchrun.inputs.template import Defaults


def _fill(template: str) -> str:
    body: dict[str, str] = {}
    Defaults({"input": template}).fill(body, {"question": "hi", "words": ["a", "b"]})
    return body["input"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ question.__init__.__globals__ }}",
        "{{ question | attr('__class__') }}",
        "{{ words | map(attribute='__class__') | list }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ self.__init__.__globals__ }}",
        "{{ row.pop('question') }}",
        "{{ words.append('c') }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(question) }}",
        "{{ '{a.__class__}'.format_map({'a': question}) }}",
        "{% set f = '{0.__class__.__mro__}'.format %}{{ f(question) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ ().__class__.__base__ }}",
        "{{ lipsum() }}",
    ],
)
def test_no_template_leaves_the_sandbox(template: str) -> None:
    with pytest.raises(RowProblem):
        _fill(template)


_GROWS = "{% set ns = namespace(x='a') %}{% for _ in range(60) %}GROW{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for _ in range(10**9) %}x{% endfor %}",
        "{% for _ in range(99999) %}{% for _ in range(99999) %}x{% endfor %}{% endfor %}",
        "{% for _ in range(99999) %}{% for _ in range(999) | map('abs') %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * words }}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ (10 ** 20000) * (10 ** 20000) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a'.ljust(width=10**10) }}",
        "{{ 'a' | indent(10**10, true) }}",
        "{{ words | batch(10**10, 'x') | list }}",
        "{{ words | slice(10**10) | list }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '%10000000000s' | format('x') }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10**10) }}",
        _GROWS.replace("GROW", "{% set ns.x = ns.x ~ ns.x %}"),
        _GROWS.replace("GROW", "{% set ns.x = ns.x + ns.x %}"),
        _GROWS.replace("GROW", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        _GROWS.replace("GROW", "{% set ns.x = ns.x | replace('a', 'aa') %}"),
        _GROWS.replace("GROW", "{% set ns.x = ns.x.replace('a', 'aa') %}"),
        _GROWS.replace("GROW", "{% set ns.x = [ns.x, ns.x] | join %}"),
        _GROWS.replace("GROW", "{% set ns.x = ''.join([ns.x, ns.x]) %}"),
        _GROWS.replace("GROW", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
        _GROWS.replace("GROW", "{% set ns.x = '{0}{0}'.format(ns.x) %}"),
        _GROWS.replace("GROW", "{% set ns.x = [ns.x, ns.x] %}"),
        _GROWS.replace("GROW", "{% set ns.x = [ns.x, ns.x] | string %}"),
        _GROWS.replace("GROW", "{% set ns.x = [ns.x, ns.x] ~ '' %}"),
        _GROWS.replace("GROW", "{% set ns.x = cycler(ns.x, ns.x).items %}"),
        "".join("{% for _ in '0123456789' %}" for _ in range(12)) + "{% endfor %}" * 12,
        (
            "{% for _ in range(999) recursive %}{% if loop.depth < 9 %}{{ loop(range(999)) }}"
            "{% endif %}{% endfor %}"
        ),
        "{{ 1 | round(-(10**9)) }}",
        "{{ (5).to_bytes(10**10, 'big') | length }}",
        "{{ ('a' * 10**6).translate({97: 'x' * 10**6}) }}",
        "{{ words | tojson(indent=10**10) }}",
        "{% set t = 'a' * 10**8 %}{% for _ in range(99999) %}{{ t[1:] in t }}{% endfor %}",
    ],
)
def test_what_would_never_end_is_a_problem_of_the_row(template: str) -> None:
    said = r"more than 1,000,000 steps|Range too big|nested too deeply"
    with pytest.raises(RowProblem, match=said):
        _fill(template)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '%d of %d' % (12345678, 5) }}", "12345678 of 5"),
        ("{{ '%(n)s' % {'n': 99999999} }}", "99999999"),
        ("{{ '%s' | format(10**12) }}", "1000000000000"),
        ("{{ '{:>8}'.format('a') }}", "       a"),
        ("{{ question ~ 1 ~ words }}", "hi1['a', 'b']"),
        ("{{ question * 3 + '!' }}", "hihihi!"),
        ("{{ 2 ** 64 % 7 }}", "2"),
        ("{{ words | join(', ') }}", "a, b"),
        ("{{ words | map('upper') | join('-') }}", "A-B"),
        ("{{ question.replace('h', 'H', 10**9 - 10**9 + 1) }}", "Hi"),
        (
            "{% for w in words %}{{ loop.index }}/{{ loop.length }}{{ w }} {% endfor %}",
            "1/2a 2/2b ",
        ),
        ("{% for w in words | map('upper') %}{{ loop.last }}{{ w }} {% endfor %}", "FalseA TrueB "),
        ("{% for k, v in row.items() %}{{ k }} {% endfor %}", "question words "),
        ("{% for _ in range(900) %}{% for _ in range(1000) %}{% endfor %}{% endfor %}ok", "ok"),
    ],
)
def test_what_templates_are_for_still_works(template: str, text: str) -> None:
    assert _fill(template) == text


def test_each_row_has_all_its_steps() -> None:
    defaults = Defaults({"input": "{% for _ in range(99999) %}{% endfor %}{{ question }}"})
    for number in range(15):  # more than a million in all
        body: dict[str, str] = {}
        defaults.fill(body, {"question": str(number)})
        assert body["input"] == str(number)
