"""A process that scores answers with code that may hang or crash: patterns, functions, `math`.

It gets a pickled scorer and then lists of answers over a pipe, and sends back scores as they come.
"""

import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from batchrun.errors import BatchrunError, JobError
from batchrun.evals.rules import make_scorer, time_limit_s
from batchrun.formats.json_text import encode_json, shown, valid_text
from batchrun.formats.printable import nearest
from batchrun.job.scorer_sections import PythonJob, ScorerJob
from batchrun.scoring.score import BadTarget, Score, text_of

VALUE = "value"  # the metric of scorers that have one
ERROR = "scorer_error"
Scores = Mapping[str, Score]  # by metric
Work = Callable[[Any], Scores | Sequence[Scores]]  # of text, target and extra, or of a group

_SEND_S = 0.02  # scores wait for so long, to be sent together
_SPARE_S = 5  # after its limit a process ends by itself, whoever waits for it
_KEYS = ("value", "answer", "reason", "explanation", "metadata")


def serve() -> NoReturn:
    """The process itself: its argument is the number of the pipe's handle."""
    pipe = Connection(int(sys.argv[1]))
    os.dup2(2, 1)  # what functions print is for people
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns that we keep the time
    job: ScorerJob = pipe.recv()
    try:
        work = work_of(job)
    except BatchrunError as error:
        pipe.send(str(error))
        os._exit(0)
    pipe.send(None)
    limit_s = math.ceil(time_limit_s(job)) + _SPARE_S
    while True:
        try:
            is_single, answers = pipe.recv()
        except EOFError:
            os._exit(0)
        _work_off(pipe, work, answers, limit_s, is_single=is_single)


def _work_off(
    pipe: Connection, work: Work, answers: Sequence[Any], limit_s: int, *, is_single: bool
) -> None:
    """Sends what comes of each answer; `is_single`: one by one."""
    made: list[Any] = []
    sent_s = time.monotonic()
    for answer in answers:
        now_s = time.monotonic()
        if made and (is_single or now_s - sent_s > _SEND_S):
            pipe.send(made)
            made, sent_s = [], now_s
        signal.alarm(limit_s)
        try:
            made.append(work(answer))
        except BadTarget as error:
            made.append(error)
        except Exception as error:  # noqa: BLE001 - whatever a function raises costs one row
            made.append({VALUE: failed(_in_words(error))})
    signal.alarm(0)
    pipe.send(made)


def failed(said: str) -> Score:
    """Of a row whose scorer raised."""
    return Score(None, None, ERROR, valid_text(said[:2_000]))


def _in_words(error: Exception) -> str:
    """What was raised, and where in the user's file."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f" ({Path(last.filename).name}, line {last.lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"


def work_of(job: ScorerJob) -> Work:
    """What scores an answer. Raises `JobError`, `MissingLibrary`."""
    if isinstance(job, PythonJob):
        function = load_function(job.function)
        if job.rows == "one":
            return lambda answer: scores_of(function(answer[2]))
        return lambda rows: _of_group(function([one[2] for one in rows]), len(rows))
    score = make_scorer(job)
    return lambda answer: {VALUE: score(*answer)}


def load_function(where: str) -> Callable[[Any], Any]:
    """The function `file.py:name`. Raises `JobError`."""
    path, _, name = where.rpartition(":")
    spec = spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise JobError(f"{path}: no such file; check the path")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(Path(path).parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - the user's own file may raise anything
        raise JobError(
            f"{path}: it cannot be imported: {_in_words(error)}; run it by hand: python {path}"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, one in vars(module).items() if callable(one) and key[0] != "_"]
        raise JobError(f"{path}: there is no function {name}; {nearest(name, known, 'functions')}")
    return function  # type: ignore[no-any-return]


def _of_group(result: Any, rows: int) -> Sequence[Scores]:
    """A result for each row, or one for all of them. Raises `TypeError`."""
    if not isinstance(result, list | tuple):
        return [scores_of(result)] * rows
    if len(result) != rows:
        raise TypeError(f"it returned {len(result)} results for {rows} rows")
    return [scores_of(one) for one in result]


def scores_of(result: Any) -> Scores:
    """What a function returned as scores by metric. Raises `TypeError`, `ValueError`."""
    if not isinstance(result, Mapping):
        return {VALUE: Score(_number(result))}
    for key in result:
        if key not in _KEYS:
            raise TypeError(f"it returned {shown(key)}; {nearest(str(key), _KEYS)}")
    answer, reason, explanation = (
        None if result.get(key) is None else valid_text(text_of(result[key]))
        for key in ("answer", "reason", "explanation")
    )
    metadata = result.get("metadata")
    written = None if metadata is None else encode_json(metadata).decode()
    rest = (answer, reason, explanation, written)
    value = result.get("value")
    if not isinstance(value, Mapping):
        return {VALUE: Score(_number(value), *rest)}
    if not value:
        raise TypeError("it returned no metric")
    return {str(metric): Score(_number(one), *rest) for metric, one in value.items()}


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float | Decimal | Fraction) and not hasattr(
        value, "__float__"
    ):
        raise TypeError(
            f"it returned {value!r:.80}; give a number, a truth value, None, or an object with "
            f"{', '.join(_KEYS)}"
        )
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"it returned {number}; give a finite number")
    return number
