"""Whose keys and which region a store is asked with, as the tools of its vendor find them.

What cannot be tested on loopback: a role by web identity, and single sign-on. The library asks for
these at addresses of its own, over TLS.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_server import LoopbackServer, QuietHandler
from tests.remote.object_server import Bucket, Proxy
from tests.remote.test_reading_sources import PROMPT

Command = Callable[..., subprocess.CompletedProcess[str]]
_KEYS = """
[default]
aws_access_key_id = of-default
aws_secret_access_key = secret
[team]
aws_access_key_id = of-team
aws_secret_access_key = secret
aws_session_token = token-of-team
"""
_CONFIG = """
[default]
region = eu-west-3
[profile team]
region = eu-north-1
endpoint_url = {address}
s3 =
    addressing_style = path
[profile by-role]
role_arn = arn:aws:iam::123456789012:role/reader
source_profile = team
[profile by-command]
credential_process = {command}
"""
_GIVEN = {
    "Version": 1,
    "Code": "Success",
    "AccessKeyId": "of-machine",
    "SecretAccessKey": "secret",
    "Token": "token-of-machine",
    "SessionToken": "token-of-machine",
    "Expiration": "2099-01-01T00:00:00Z",
    "LastUpdated": "2026-01-01T00:00:00Z",
}


_TEAM = {"AWS_PROFILE": "team"}
_OURS = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "secret"}
_NO_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}


class Machine:
    """What tells a machine in a cloud who it is and where."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        machine = self

        class Handler(QuietHandler):
            def _serve(self) -> None:
                machine.asked.append(self.path)
                found = {
                    "/credentials": json.dumps(_GIVEN),
                    "/latest/api/token": "token",
                    "/latest/meta-data/iam/security-credentials": "reader",
                    "/latest/meta-data/iam/security-credentials/reader": json.dumps(_GIVEN),
                    "/latest/meta-data/placement/availability-zone": "mars-north-1a",
                }
                body = found.get(self.path.rstrip("/"), "").encode()
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "21600")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = _serve  # noqa: N815 - http.server's

        self._server = LoopbackServer(Handler)
        self.address = self._server.address

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


@pytest.fixture
def ask(
    bucket: Bucket,
    proxy: Proxy,
    machine: Machine,
    batchrun: Command,
    environment: dict[str, str],
    tmp_path: Path,
    questions: Any,
) -> Callable[..., Any]:
    """Whose key signed what `batchrun run` asks of a store, for which region; or what is said.

    The machine itself is one of a cloud, and has a role.
    """
    bucket.put("a.jsonl", questions(3))
    (tmp_path / "keys").write_text(_KEYS)
    (tmp_path / "given.json").write_text(json.dumps(_GIVEN))
    command = f"cat {tmp_path / 'given.json'}"
    (tmp_path / "config").write_text(_CONFIG.format(address=proxy.address, command=command))

    def run(source: str = f"{bucket.url}/a.jsonl", **variables: str) -> Any:
        files = {
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"),
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": machine.address,
            "AWS_ENDPOINT_URL": proxy.address,
            **variables,
        }
        ours = {name: "" for name in environment if name.startswith("AWS_")}
        done = batchrun("run", source, *PROMPT, "-o", "run", env={**ours, **files})
        if done.returncode:
            assert done.returncode == 2, done.stderr
            return done.stderr
        tokens = {call.headers.get("x-amz-security-token") for call in proxy.calls}
        return {call.signed_for for call in proxy.calls}, tokens

    return run


def _long(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("variables", "signed_for", "token"),
    [
        ({**_TEAM, "AWS_ENDPOINT_URL": ""}, "of-team eu-north-1", "token-of-team"),
        ({"AWS_PROFILE": "by-command"}, "of-machine us-east-1", "token-of-machine"),
        _long({}, "of-default eu-west-3", None),
        _long(_TEAM, "of-team eu-north-1", "token-of-team"),
        _long({**_TEAM, "AWS_REGION": "eu-south-2"}, "of-team eu-south-2", "token-of-team"),
        _long({**_TEAM, **_OURS}, "ours eu-north-1", None),
    ],
)
def test_keys_and_region_are_those_of_the_environment_and_the_profile(
    variables: dict[str, str],
    signed_for: str,
    token: str | None,
    ask: Callable[..., Any],
    machine: Machine,
) -> None:
    assert ask(**variables) == ({signed_for}, {token})
    assert machine.asked == []


def test_the_region_is_never_looked_up(
    ask: Callable[..., Any], bucket: Bucket, machine: Machine
) -> None:
    """Also where nothing names one but the URL, or nothing at all."""
    url = f"{bucket.url}/a.jsonl?region=ap-east-1"
    assert ask(url, **_NO_FILES, **_OURS) == ({"ours ap-east-1"}, {None})
    assert machine.asked == []


def test_without_keys_they_are_those_of_the_machine(
    ask: Callable[..., Any], machine: Machine
) -> None:
    url = f"{machine.address}/credentials"
    found = ask(**_NO_FILES, AWS_CONTAINER_CREDENTIALS_FULL_URI=url)
    assert found == ({"of-machine us-east-1"}, {"token-of-machine"})
    assert set(machine.asked) == {"/credentials"}


@pytest.mark.long
def test_without_keys_they_are_those_of_the_role_of_an_instance(
    ask: Callable[..., Any], machine: Machine
) -> None:
    assert ask(**_NO_FILES) == ({"of-machine us-east-1"}, {"token-of-machine"})
    assert "/latest/meta-data/iam/security-credentials/reader" in machine.asked


def test_a_public_bucket_is_read_without_a_key(
    ask: Callable[..., Any], bucket: Bucket, machine: Machine, questions: Any
) -> None:
    bucket.put("public.jsonl", questions(3), is_public=True)
    assert ask(f"s3://anonymous@{bucket.name}/public.jsonl", AWS_PROFILE="nobody") == ({""}, {None})
    assert machine.asked == []


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("nobody", "AWS_PROFILE is nobody, and no such profile is in"),
        ("by-role", "credential_process = aws configure export-credentials --profile by-role"),
    ],
)
def test_a_profile_that_gives_no_keys_is_not_replaced_by_the_role_of_the_machine(
    profile: str, said: str, ask: Callable[..., Any], proxy: Proxy
) -> None:
    assert said in ask(AWS_PROFILE=profile)
    assert proxy.calls == []
