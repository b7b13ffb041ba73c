"""A cap on dollars, for a run directory or for one command. No I/O; its sums are exact.

What is known to be spent, what may have been spent, and what is reserved for attempts in flight
never exceed the cap when an attempt starts.
"""

import math

from batchrun.errors import StopCause
from batchrun.formats.amounts import usd
from batchrun.limits.verdicts import GO, LimitStatus, Stop, Verdict, Wait
from batchrun.records import Finish, Need, Slot

_CAP_DIGITS = 2
_PARTS = 10**12  # sums are whole picodollars, so that what was reserved is returned exactly


class Budget:
    """Lets an attempt start if the cap holds even when the attempt costs all that it reserves.

    If too little is left, it waits for attempts in flight, which may cost less than they reserve.
    If nothing is in flight, it stops the run.
    """

    def __init__(
        self,
        cap_usd: float,
        spent_usd: float | None,
        unknown_usd: float = 0.0,
        *,
        of_command: bool = False,
    ) -> None:
        """`spent_usd` and `unknown_usd`: of earlier commands; None: no known cost.

        `of_command`: the cap is only for this command.
        """
        self.cap_usd = cap_usd
        self._of_command = of_command
        self.is_used_up = False  # it has stopped the run
        self.refused_usd = 0.0  # what the request that stopped the run reserves
        self._cap = int(min(cap_usd, 1e12) * _PARTS)  # a cap may be infinite
        self._spent = picodollars(spent_usd or 0.0)
        self._unknown = picodollars(unknown_usd)
        self._reserved = 0
        self._in_flight = 0  # attempts with a reservation
        self._before = self._spent, self._unknown

    @property
    def spent_usd(self) -> float:
        """Dollars that are known to be spent."""
        return self._spent / _PARTS

    @property
    def unknown_usd(self) -> float:
        """Dollars that were reserved for attempts that reported no usage."""
        return self._unknown / _PARTS

    @property
    def left_parts(self) -> int:
        """Picodollars that are neither spent, nor perhaps spent, nor reserved."""
        return max(0, self._cap - self._spent - self._unknown - self._reserved)

    def follow(self, spent: int, unknown: int, reserved: int) -> None:
        """Sets the totals, in picodollars, that workers have spent under this cap."""
        self._spent, self._unknown = self._before[0] + spent, self._before[1] + unknown
        self._reserved = reserved

    @property
    def parts(self) -> tuple[int, int, int]:
        """Picodollars that are spent, that may have been spent, and that are reserved."""
        return self._spent, self._unknown, self._reserved

    @property
    def reserved_usd(self) -> float:
        """Dollars that are reserved for attempts in flight."""
        return self._reserved / _PARTS

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if self._spent + self._unknown + self._reserved + picodollars(need.dollars) <= self._cap:
            return GO
        if self._in_flight:
            return Wait()
        self.is_used_up, self.refused_usd = True, need.dollars
        return Stop(self._reason(need.dollars), StopCause.BUDGET)

    def started(self, need: Need, now_s: float) -> None:
        if need.dollars > 0:
            self._reserved += picodollars(need.dollars)
            self._in_flight += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        reserved = picodollars(slot.need.dollars)
        if reserved:
            self._reserved -= reserved
            self._in_flight -= 1
        if finish.dollars is not None:
            self._spent += picodollars(finish.dollars)
        else:
            self._unknown += reserved

    def status(self, now_s: float) -> LimitStatus:
        used = (self._spent + self._unknown + self._reserved) / _PARTS
        return LimitStatus(self.option, used, self.cap_usd, of="dollars")

    def enough_usd(self, rows: int, rows_usd: float | None) -> float:
        """A cap that is enough for so many more rows and one reservation, rounded up.

        `rows_usd`: their expected cost; None: what is reserved for each.
        """
        more_usd = rows * self.refused_usd if rows_usd is None else rows_usd + self.refused_usd
        cap_usd = self.spent_usd + self.unknown_usd + more_usd
        if not cap_usd > 0:
            return 0.0
        unit = 10.0 ** (math.floor(math.log10(cap_usd)) + 1 - _CAP_DIGITS)
        return round(math.ceil(cap_usd / unit) * unit, 12)

    def _reason(self, dollars: float) -> str:
        unknown = (
            f", and at most {usd(self.unknown_usd)} more by attempts whose cost is not known"
            if self._unknown
            else ""
        )
        is_used_up = (
            f"is used up ({usd(self.spent_usd)} of {usd(self.cap_usd)} are spent{unknown}, and the "
            f"next request may cost up to {usd(dollars)})"
        )
        if self._of_command:
            return (
                f"the budget of this command {is_used_up}; run it again to spend as much "
                "again, or raise --max-cost-per-command (limits.max_cost_per_command_usd)"
            )
        return (
            f"the budget {is_used_up}; to continue, raise --max-cost (limits.max_cost_usd) and run "
            "again"
        )

    @property
    def option(self) -> str:
        """The option that sets the cap."""
        return "--max-cost-per-command" if self._of_command else "--max-cost"


def picodollars(dollars: float) -> int:
    """Whole picodollars; at least one if there is anything to pay."""
    return math.ceil(dollars * _PARTS) if dollars > 0 else 0
