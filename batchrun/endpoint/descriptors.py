"""How many requests may be in flight, as far as connections go."""

from batchrun.job import LimitsJob

AUTO_IN_FLIGHT = 1_000  # the most that `--concurrency auto` goes up to
_KEPT = 64  # descriptors for files, the terminal, the event loop


def fit_in_flight(limits: LimitsJob, *, here: bool = False) -> tuple[int, str | None]:
    """Requests that may be in flight, and a warning where that is less than asked for.

    `here`: the server is in this process too. The limit on open files is raised where it may be.
    """
    asked = limits.concurrency
    wanted = AUTO_IN_FLIGHT if isinstance(asked, str) else asked
    allowed = _allow_connections(wanted, each=2 if here else 1)
    if isinstance(asked, str) or allowed == wanted:
        return allowed, None
    return allowed, (
        f"the limit on open files allows {allowed:,} requests in flight, not {wanted:,}; raise it "
        "with ulimit -n"
    )


def _allow_connections(wanted: int, *, each: int) -> int:
    """As many of the `wanted` as the system allows; `each` takes so many descriptors."""
    try:
        import resource  # noqa: PLC0415 - Windows has no such limit
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * each + _KEPT
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ValueError, OSError):  # refused: the limit stays as it is
        most = soft
    return max(1, min(wanted, (most - _KEPT) // each))
