"""A whole `adex serve` whose hub and S3 are ours: names, tokens, tiers, from request to text."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).resolve().parents[3]
GOOD, BAD = "hf_good_canary_9f3", "hf_bad_canary_7c1"
START_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """S3 where every signature and policy is checked; `credential` alone may read team/private."""

    url: str
    credential: str
    stranger: str


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    url = f"http://{host}:{port}"
    httpx.post(f"{url}/moto-api/reset")
    admin = boto3.session.Session(
        aws_access_key_id="admin", aws_secret_access_key="admin", region_name="us-east-1"
    )
    s3, iam = admin.client("s3", endpoint_url=url), admin.client("iam", endpoint_url=url)
    s3.create_bucket(Bucket="weights")
    for path in adapter_folder().iterdir():
        s3.put_object(Bucket="weights", Key=f"team/private/{path.name}", Body=path.read_bytes())
    credentials: list[str] = []
    for name in ("reader", "stranger"):
        iam.create_user(UserName=name)
        keys = iam.create_access_key(UserName=name)["AccessKey"]
        credentials.append(f"{keys['AccessKeyId']}:{keys['SecretAccessKey']}")
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=policy)
    httpx.post(f"{url}/moto-api/reset-auth", content=b"0")
    yield Bucket(url, *credentials)
    httpx.post(f"{url}/moto-api/reset-auth", content=b"inf")
    served.stop()


def adapter_folder() -> Path:
    return min(path for path in (ROOT / "demo/adapters").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def serving(
    tmp_path_factory: pytest.TempPathFactory, module_hub: Any, bucket: Bucket
) -> Iterator[tuple[str, Path, Path]]:
    """(url, the folder of the adapter that the hub publishes, the log)."""
    base = tmp_path_factory.mktemp("whole")
    adapter = adapter_folder()
    module_hub.publish("org/public", adapter)
    module_hub.publish("org/private", adapter, tokens={GOOD})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "adex", "serve", "--model-id", str(ROOT / "demo/model")]
    command += ["--local-adapter-root", str(adapter.parent), "--cache-dir", str(base / "cache")]
    command += ["--lora-modules", "friendly=hf://org/public"]
    command += ["--port", str(port), "--grpc-port", "0", "--device-memory", "96MiB"]
    command += ["--s3-adapter-root", "s3://weights/team"]
    key, _, secret = bucket.stranger.partition(":")
    environment = os.environ | {"AWS_ENDPOINT_URL_S3": bucket.url, "AWS_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    environment |= {"HF_ENDPOINT": module_hub.url, "HF_TOKEN": "hf_of_the_server"}
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=base, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url, adapter, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def ask(url: str, **parameters: Any) -> httpx.Response:
    body = {
        "inputs": "The quick brown",
        "parameters": {"max_new_tokens": 12, "ignore_eos_token": True, **parameters},
    }
    return httpx.post(f"{url}/generate", json=body, timeout=60)


def text(url: str, **parameters: Any) -> str:
    answer = ask(url, **parameters)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generated_text"])


def test_an_answer_says_where_its_adapter_was(serving: tuple[str, Path, Path]) -> None:
    url, _, _ = serving
    tiers = [
        ask(url, adapter_id="org/public", adapter_source="hub").headers["x-adapter-tier"]
        for _ in range(2)
    ]
    assert tiers == ["remote", "device"]
    assert "x-adapter-tier" not in ask(url).headers


def test_the_hubs_adapter_says_what_the_local_one_says(serving: tuple[str, Path, Path]) -> None:
    url, adapter, _ = serving
    expected = text(url, adapter_id=adapter.name)
    assert expected != text(url)
    assert text(url, adapter_id="org/public", adapter_source="hub") == expected
    assert text(url, adapter_id="org/public@main", adapter_source="huggingface") == expected
    assert text(url, adapter_id="hf://org/public") == expected
    assert text(url, adapter_id="friendly") == expected


def test_a_bad_token_is_not_saved_by_a_good_one(serving: tuple[str, Path, Path]) -> None:
    url, adapter, log = serving
    private = {"adapter_id": "org/private", "adapter_source": "hub"}
    assert text(url, **private, api_token=GOOD) == text(url, adapter_id=adapter.name)
    for token in ({"api_token": BAD}, {}):
        refused = ask(url, **private, **token)
        assert refused.status_code == 404
        assert refused.json()["error_type"] == "adapter_not_found"
    assert text(url, **private, api_token=GOOD)
    chat = {"model": "org/private", "prompt": "The quick brown", "max_tokens": 3}
    asked = {**chat, "adapter_source": "hub"}
    by = {
        token: httpx.post(f"{url}/v1/completions", json={**asked, "api_token": token}, timeout=60)
        for token in (GOOD, BAD)
    }
    assert by[GOOD].status_code == 200
    assert by[BAD].status_code == 404
    told = httpx.get(f"{url}/v1/models").text + httpx.get(f"{url}/metrics").text
    assert "org/private" not in told
    for secret in (GOOD, BAD, "hf_of_the_server"):
        assert secret not in told + log.read_text()


def test_a_name_that_is_no_repository_is_refused(serving: tuple[str, Path, Path]) -> None:
    url, _, _ = serving
    refused = ask(url, adapter_id="org/../public", adapter_source="hub")
    assert refused.status_code == 422
    assert "org/name" in refused.json()["error"]


def test_in_s3_a_caller_reads_with_its_own_credential_and_nobody_after_it(
    serving: tuple[str, Path, Path], bucket: Bucket
) -> None:
    url, adapter, log = serving
    private = {"adapter_id": "s3://weights/team/private"}
    key, _, secret = bucket.credential.partition(":")
    assert text(url, **private, api_token=bucket.credential) == text(url, adapter_id=adapter.name)
    refusals = {
        bucket.stranger: (404, "adapter_not_found"),
        f"{key}:{secret[::-1]}": (403, "adapter_forbidden"),
        "hf_not_for_s3": (422, "validation"),
        "": (403, "adapter_forbidden"),
    }
    for token, expected in refusals.items():
        refused = ask(url, **private, api_token=token)
        assert (refused.status_code, refused.json()["error_type"]) == expected
    assert text(url, **private, api_token=bucket.credential)
    told = httpx.get(f"{url}/v1/models").text + httpx.get(f"{url}/metrics").text
    assert "team/private" not in told
    for credential in (bucket.credential, bucket.stranger):
        assert credential.partition(":")[2] not in told + log.read_text()
    assert key not in told + log.read_text()
