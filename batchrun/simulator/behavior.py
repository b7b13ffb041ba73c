"""How a simulated server behaves: every setting, with its default.

A `Behavior` cannot exist with settings that make no sense. Rates are shares, from 0 to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from batchrun.simulator.kinds import EXCLUSIVE, SPREAD, Fault, Quirk


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    """All that can be set. Raises `ValueError` where a setting makes no sense."""

    seed: int = 0
    latency_s: float = 0.05  # median, drawn anew for each attempt
    latency_spread: float = 0.35  # sigma of its logarithm; 0: always the median
    output_tokens: float = 60.0  # median of what an answer in text needs
    output_spread: float = 0.8  # sigma of its logarithm
    requests_per_minute: float | None = None  # for each model, as the next
    tokens_per_minute: float | None = None
    burst_s: float = 60.0  # what a full bucket holds: so many seconds of the limit
    hints: bool = True  # tell the limits in x-ratelimit-* and Retry-After
    max_in_flight: int | None = None  # one more gets 503
    accepts: bool = True  # false: a connection never comes about
    api_key: str | None = field(default=None, repr=False)  # null: any key or none will do
    models: tuple[str, ...] = ()  # empty: any name will do
    quota: int | None = None  # answers, then 429 insufficient_quota for ever
    faults: float = 0.0  # in equal parts over SPREAD
    fault_rates: Mapping[str, float] = field(default_factory=dict)  # by kind, wins over `faults`
    retry_after_s: float = 1.0  # what the fault 429_hint and its like say
    bad_arguments: float = 0.0  # calls whose arguments are malformed or do not fit
    bad_output: float = 0.0  # structured answers that are malformed or do not fit
    refusals: float = 0.0  # answers that are a refusal
    quirks: tuple[Quirk, ...] = ()  # what every answer has; names as text will do

    def __post_init__(self) -> None:
        for name in self.fault_rates:
            if name not in set(Fault):
                raise ValueError(f"no fault is called {name!r}; there are {', '.join(Fault)}")
        for name in self.quirks:
            if name not in set(Quirk):
                raise ValueError(f"no quirk is called {name!r}; there are {', '.join(Quirk)}")
        object.__setattr__(self, "quirks", tuple(Quirk(name) for name in self.quirks))
        for rivals in EXCLUSIVE:
            if len(rivals.intersection(self.quirks)) > 1:
                raise ValueError(f"of the quirks {', '.join(sorted(rivals))} one can be had")
        shares = {
            "faults": self.faults,
            "bad_arguments": self.bad_arguments,
            "bad_output": self.bad_output,
            "refusals": self.refusals,
            **{f"fault {name}": rate for name, rate in self.fault_rates.items()},
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; a rate lies between 0 and 1")
        total = sum(self.rates().values())
        if total > 1 + 1e-9:
            raise ValueError(f"the rates of faults add up to {total:.4g}; 1 is the most")
        least = {
            "latency_s": (self.latency_s, 0.0),
            "latency_spread": (self.latency_spread, 0.0),
            "output_tokens": (self.output_tokens, 1.0),
            "output_spread": (self.output_spread, 0.0),
            "retry_after_s": (self.retry_after_s, 0.0),
            "burst_s": (self.burst_s, 0.001),
            "requests_per_minute": (self.requests_per_minute, 0.001),
            "tokens_per_minute": (self.tokens_per_minute, 0.001),
            "max_in_flight": (self.max_in_flight, 0),
            "quota": (self.quota, 0),
        }
        for name, (value, smallest) in least.items():
            if value is not None and not (value >= smallest and isfinite(value)):
                raise ValueError(f"{name} is {value}; it must be at least {smallest:g}")
        if self.api_key is not None and not self.api_key:
            raise ValueError("api_key is empty; give a key, or none at all")

    def rates(self) -> dict[Fault, float]:
        """The rate of each kind of fault, those of 0 left out."""
        part = self.faults / len(SPREAD)
        rates: dict[Fault, float] = dict.fromkeys(SPREAD, part)
        rates.update((Fault(name), rate) for name, rate in self.fault_rates.items())
        return {fault: rates[fault] for fault in Fault if rates.get(fault)}
