"""What clients that others wrote get from the server over real sockets."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped] # it ships no types
import openai
import pytest
from conftest import Start, Stats
from openai import AsyncOpenAI
from openai.types.responses import Response

Sdk = Callable[[str], AsyncOpenAI]
