"""The headers of answers: request ids, limits as they stand, what gateways add."""

import os
import time

from batchrun.simulator.behavior import Behavior
from batchrun.simulator.kinds import Quirk
from batchrun.simulator.limits import Limits


class Headers:
    """Makes the headers of one server."""

    def __init__(self, behavior: Behavior, limits: Limits) -> None:
        self._limits = limits if behavior.hints else None
        self._extras = (
            {"x-litellm-response-cost": "0.00042", "x-litellm-model-id": "simulated"}
            if Quirk.EXTRAS in behavior.quirks
            else {}
        )
        other = Quirk.OTHER_REQUEST_ID in behavior.quirks
        self._id_name = "x-oneapi-request-id" if other else "x-request-id"

    def request_id(self) -> dict[str, str]:
        return {self._id_name: f"req_{os.urandom(16).hex()}"}

    def limits(self, model: str) -> dict[str, str]:
        """`x-ratelimit-*`; nothing where limits are not told."""
        return {} if self._limits is None else self._limits.headers(model, time.monotonic())

    def of_answer(self, model: str, latency_s: float) -> dict[str, str]:
        return {
            **self.request_id(),
            **self.limits(model),
            **self._extras,
            "openai-processing-ms": str(round(latency_s * 1000)),
        }
