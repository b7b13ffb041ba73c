"""Images of a megabyte under a limit on tokens: how long they take, in virtual time."""

import asyncio
import json
import struct
from base64 import b64encode
from random import Random

from batchrun.dispatch.gate import Gate
from batchrun.limits.answer_sizes import AnswerSizes
from batchrun.limits.concurrency import FirstAlone, InFlight
from batchrun.limits.rate import MinuteLimit
from batchrun.limits.scopes import scope_limits
from batchrun.limits.verdicts import Limit
from batchrun.records import Finish, Need, Scope
from batchrun.simulator.requests import read_body
from tests.pacing.virtual_loop import run

_SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
_LATENCY_S = 2.0
_OUTPUT = 60  # tokens


def bodies(rows: int, size: int) -> list[bytes]:
    """Each with an image of so many bytes."""
    draw, made = Random(1), []
    for _ in range(rows):
        sides = struct.pack(">II", draw.randint(200, 4_000), draw.randint(200, 4_000))
        image = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + sides + bytes(size)
        url = f"data:image/png;base64,{b64encode(image).decode()}"
        part = {"type": "input_image", "image_url": url}
        made.append(json.dumps({"model": "m", "input": [{"content": [part]}]}).encode())
    return made


async def time_of(rows: list[bytes], *limits: Limit) -> float:
    """How long these rows take, whose tokens are as the simulator counts them."""
    loop, sizes = asyncio.get_running_loop(), AnswerSizes()
    gate = Gate([InFlight(256), *limits, FirstAlone()], lambda _scope: scope_limits(256))
    begun_s = loop.time()

    async def send(body: bytes) -> None:
        size = None

        def need() -> Need:
            nonlocal size
            size = sizes.size_of(body)
            output = sizes.expected_output(None)
            return Need(_SCOPE, sizes.expected_input(body, size) + output, 0.0, output)

        slot = await gate.enter(_SCOPE, need)
        await asyncio.sleep(_LATENCY_S)
        tokens = read_body(body).input_tokens
        sizes.record(_OUTPUT, tokens)
        sizes.record_input(body, size, tokens)
        gate.leave(slot, Finish(tokens=tokens + _OUTPUT))

    await asyncio.gather(*map(send, rows))
    return loop.time() - begun_s


def test_a_limit_on_tokens_does_not_hold_up_images_that_take_few() -> None:
    """By a fourth of their bytes, five a minute would go."""
    rows = bodies(40, 1_000_000)
    free_s = run(time_of(rows))
    assert run(time_of(rows, MinuteLimit("tokens", 2_000_000))) <= 1.5 * free_s
