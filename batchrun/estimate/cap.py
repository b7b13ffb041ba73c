"""Whether a cap on dollars holds what is estimated, in words."""

from collections.abc import Iterator, Sequence

from batchrun.estimate.figures import Answers, PilotResult
from batchrun.estimate.lines import STANDARD
from batchrun.policy.budget import usd


def on_cap(
    cap_usd: float | None,
    spent_usd: float,
    answers: Sequence[Answers],
    pilot: PilotResult | None,
) -> Iterator[str]:
    """`spent_usd`: on settled rows, which the cap takes in. Dollars are those of the standard tier.

    A pilot's cost takes in what is spent already.
    """
    if cap_usd is None:
        return
    said = f"the cap of {usd(cap_usd)} (--max-cost)"
    if pilot is not None and pilot.cost_usd is not None:
        cost = pilot.cost_usd
        if cost.total > cap_usd:
            yield f"{said} is below that: it is likely to stop the run before its end"
        elif cost.high > cap_usd:
            yield f"{said} lies within that interval: it may stop the run before its end"
        return
    above = [
        line.name if line.model is None else f"{line.model}, {line.name}"
        for line in answers
        if (dollars := line.usd[STANDARD]) is not None and spent_usd + dollars > cap_usd
    ]
    if above:
        yield f"{said} stops a run before its end if answers are as in: {'; '.join(above)}"
