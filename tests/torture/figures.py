"""What came of the rounds: figures that add up, and how they are told."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Figures:
    """Of one run or of many. A law that is broken ends the test, so its count is not here."""

    kills: Counter[str] = field(default_factory=Counter)  # rounds, by what ended them
    moments: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    starts: int = 0
    rows: int = 0
    requests: int = 0  # that arrived at the servers
    completions: int = 0  # answers that they made
    destroyed: int = 0  # of them, by faults
    in_journal: int = 0  # outcomes in the journal, summed over the kills
    in_parts: int = 0
    asked_again: int = 0  # rows whose answer was on record to be asked for again, over the rounds
    amid_seals: int = 0  # kills that left a seal half done
    lost: int = 0  # answers made that no kill found stored: they were in flight
    most_lost: float = 0.0  # at one kill, as a share of what may be in flight
    seconds: float = 0.0

    def add(self, other: "Figures") -> None:
        """These of another run too."""
        self.kills.update(other.kills)
        self.moments.update(other.moments)
        self.most_lost = max(self.most_lost, other.most_lost)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def told(self) -> str:
        """A table in Markdown."""
        lines = [
            ("rounds", f"{self.kills.total():,} ({_each(self.kills)})"),
            ("at the moments", _each(self.moments)),
            ("runs, and processes started for them", f"{self.runs:,}, {self.starts:,}"),
            ("rows", f"{self.rows:,}, each of them once in the tables of its run"),
            ("requests that arrived", f"{self.requests:,}"),
            ("answers made", f"{self.completions:,}, {self.destroyed:,} destroyed by faults"),
            ("outcomes in the journal after a round", f"{self.in_journal:,} over all rounds"),
            ("answers on record to be asked for again", f"{self.asked_again:,} over all rounds"),
            ("rounds that ended amid a seal", f"{self.amid_seals:,}"),
            ("requests for a row that was stored in an earlier round", "0"),
            (
                "answers made and lost, since they were in flight at a kill",
                f"{self.lost:,}; at one kill at most {self.most_lost:.0%} of what may be in flight",
            ),
        ]
        rows = [f"| {name} | {value} |" for name, value in lines]
        return "\n".join(["| | |", "| --- | --- |", *rows])


_SUMS = (
    *("runs", "starts", "rows", "requests", "completions", "destroyed"),
    *("in_journal", "in_parts", "asked_again", "amid_seals", "lost", "seconds"),
)


def _each(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
