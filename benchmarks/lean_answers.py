"""A lean server for the speed benchmark: nginx where it is installed, else `constant_server`.

What is answered is a Responses API answer of about 1.7 kB with the headers that the provider
sends; limits are told, and are far above what any client reaches.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.batch_lines import MODEL
from benchmarks.timed import ROOT, pin

_START_S = 10.0
_TEXT = (
    "The limits of a service show first in the time that answers take, and only then in the "
    "answers themselves. "
) * 3
BODY = json.dumps(
    {
        "id": "resp_68a1f3d2c4e88193a7b5d9e0f1a2b3c4",
        "object": "response",
        "created_at": 1_755_443_666,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": 512,
        "max_tool_calls": None,
        "model": f"{MODEL}-2025-04-14",
        "output": [
            {
                "id": "msg_68a1f3d31d248193b5c8d7e6f5a4b3c2",
                "type": "message",
                "status": "completed",
                "content": [
                    {"type": "output_text", "annotations": [], "logprobs": [], "text": _TEXT}
                ],
                "role": "assistant",
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 0.7,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 812,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 61,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 873,
        },
        "user": None,
        "metadata": {},
    },
    indent=2,
).encode()
HEADERS = {
    "x-ratelimit-limit-requests": "60000000",
    "x-ratelimit-remaining-requests": "59999999",
    "x-ratelimit-reset-requests": "1ms",
    "x-ratelimit-limit-tokens": "150000000000",
    "x-ratelimit-remaining-tokens": "149999999000",
    "x-ratelimit-reset-tokens": "1ms",
    "openai-version": "2020-10-01",
    "openai-organization": "benchmark",
    "openai-project": "proj_0123456789abcdef",
    "openai-processing-ms": "12",
    "x-request-id": "req_0123456789abcdef0123456789abcdef",
    "x-envoy-upstream-service-time": "14",
    "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
    "x-content-type-options": "nosniff",
    "cf-cache-status": "DYNAMIC",
    "alt-svc": "clear",
}
_NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid {place}/nginx.pid;
error_log {place}/error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
{headers}
        location / {{ return 200 '{body}'; }}
    }}
}}
"""


@contextmanager
def lean_server(place: Path, core: int | None) -> Iterator[tuple[str, str]]:
    """Its base URL and its name, while it runs, on this core alone where one is given."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is not None:
        port = _free_port()
        (place / "nginx.conf").write_text(_configuration(place, port))
        command = [nginx, "-p", str(place), "-c", "nginx.conf", "-e", "error.log"]
        server: subprocess.Popen[bytes] = subprocess.Popen(command)
    else:
        command = [sys.executable, "-m", "benchmarks.constant_server"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert server.stdout is not None
        port = int(server.stdout.readline())
    try:
        pin(server.pid, core)
        _wait_until_open(port, server)
        yield f"http://127.0.0.1:{port}/v1", "nginx" if nginx else "a raw asyncio protocol"
    finally:
        server.terminate()
        server.wait()


def _configuration(place: Path, port: int) -> str:
    headers = "\n".join(f'        add_header {name} "{value}";' for name, value in HEADERS.items())
    return _NGINX.format(place=place, port=port, headers=headers, body=BODY.decode())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_open(port: int, server: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < until_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"the lean server does not answer on port {port} of 127.0.0.1")
