"""A run of which somebody is told who is not there. Whatever comes of that, the run goes on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from msgspec.structs import replace

from batchrun.errors import BatchrunError
from batchrun.job.sections import Job
from batchrun.limits.budget import Budget
from batchrun.progress.notices import STALL_S, Notices, of_end, of_failed_end, of_refusal
from batchrun.progress.notifier import SEND_S, Notifier, usable_addresses
from batchrun.progress.summary import Summary
from batchrun.runner.engine import Watch

_SAID_AFTER_S = 1.0


@contextlib.asynccontextmanager
async def notified(
    job: Job,
    watch: Watch,
    *,
    command: str | None,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    stall_s: float = STALL_S,
    send_s: float = SEND_S,
) -> AsyncIterator[Watch]:
    """A watch for a run of this job, that also tells the addresses of `[notify]`.

    It is left once they were told of the end, or could not be within `send_s`. `say`: what is
    waited for; `warn`: who was not told, and why. Raises `JobError` where an address is wrong.
    """
    if not job.notify.urls:
        yield watch
        return
    watch.doing("checking the addresses of --notify")
    told = _Told(watch, Notifier(await asyncio.to_thread(usable_addresses, job), send_s), stall_s)
    try:
        yield replace(watch, summary=told.see, budgets=told.watch_budgets)
    except Exception as error:
        told.of_error(error, job, command)
        raise
    else:
        told.of_end()
    finally:
        # Whoever cancels a run does not want to wait, and knows of its end.
        if told.is_over:
            await told.wait(
                say, f"sending messages to {', '.join(job.notify.urls)}, for up to {send_s:g} s"
            )
            for problem in dict.fromkeys(told.notifier.problems):
                warn(problem)


class _Told:
    """What is seen of one run, told."""

    def __init__(self, watch: Watch, notifier: Notifier, stall_s: float) -> None:
        self._watch, self.notifier = watch, notifier
        self._notices = Notices(stall_s)
        self.budgets: Sequence[Budget] = ()
        self._end: Summary | None = None
        self.is_over = False

    def watch_budgets(self, budgets: Sequence[Budget]) -> None:
        self.budgets = budgets
        self._watch.budgets(budgets)

    def see(self, summary: Summary) -> None:
        self._watch.summary(summary)
        if summary.exit_code is not None:
            self._end = summary
            return
        with self._harmless():
            for notice in self._notices.look(summary, self.budgets, time.monotonic()):
                self.notifier.send(notice)

    def of_end(self) -> None:
        self.is_over = True
        with self._harmless():
            if self._end is not None:
                self.notifier.send(of_end(self._end))

    def of_error(self, error: Exception, job: Job, command: str | None) -> None:
        """`error` ended the run, before anything was sent or at its end."""
        self.is_over = True
        with self._harmless():
            if self._end is None:
                name = job.output.path or job.name or job.input.path
                notice = of_refusal(name, error, command)
            elif isinstance(error, BatchrunError) and error.summary is self._end:
                notice = of_end(self._end)
            else:
                notice = of_failed_end(self._end, error)
            self.notifier.send(notice)

    async def wait(self, say: Callable[[str], None], what: str) -> None:
        waiting = asyncio.ensure_future(asyncio.to_thread(self.notifier.wait))
        done, _ = await asyncio.wait((waiting,), timeout=_SAID_AFTER_S)
        if not done:
            say(what)
        await waiting

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong is a warning."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it must not end a paid run
            self.notifier.problems.append(f"no message was sent ({type(error).__name__}: {error})")
