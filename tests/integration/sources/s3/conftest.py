"""moto's S3 server, which checks signatures and policies, and what stands before it."""

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from adex_worker.adapters.core.remote_names import s3_root
from adex_worker.adapters.core.s3_credential import S3Credential
from adex_worker.adapters.sources.s3 import CONNECTIONS_MAX, S3Source
from adex_worker.adapters.sources.s3_clients import S3Clients
from adex_worker.adapters.sources.transfer import Patience

NAME = "weights"
HASTE = Patience(
    tries=4, wait_first_s=0.01, wait_s_max=1.0, connect_s=1.0, read_s=2.0, grace_s=10.0
)


def _client(url: str, service: str) -> Any:
    return boto3.session.Session().client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="admin",
        aws_secret_access_key="admin",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=2),
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of the server at `url`, and its operator."""

    url: str
    scratch: Path
    admin: Any
    name: str = NAME

    def client(self, service: str) -> Any:
        """The operator's client of another service."""
        return _client(self.url, service)

    def upload(self, prefix: str, folder: Path, name: str = NAME) -> None:
        """Put the files of the folder below the prefix."""
        for path in folder.iterdir():
            self.admin.put_object(Bucket=name, Key=f"{prefix}/{path.name}", Body=path.read_bytes())

    def clients(self, key: str = "admin", secret: str = "admin", url: str = "") -> S3Clients:
        """As a server has them whose own credential this is."""
        return S3Clients(
            HASTE,
            connections_max=CONNECTIONS_MAX,
            endpoint_url=url or self.url,
            region_name="us-east-1",
            own=S3Credential(key, secret),
        )

    def source(self, key: str = "admin", secret: str = "admin", url: str = "") -> S3Source:
        """A source with the root `team`; `url` is another way to the server."""
        self.scratch.mkdir(exist_ok=True)
        root = s3_root(f"s3://{self.name}/team")
        clients = self.clients(key, secret, url)
        return S3Source([root], self.scratch, patience=HASTE, clients=clients)

    def reader(self, name: str, *prefixes: str) -> tuple[str, str]:
        """The access key and secret of a new user who may read objects below the prefixes."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        if prefixes:
            policy = self.reading(*prefixes)
            iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
        keys = iam.create_access_key(UserName=name)["AccessKey"]
        return keys["AccessKeyId"], keys["SecretAccessKey"]

    def reading(self, *prefixes: str) -> str:
        """The policy that lets its holder read objects below the prefixes."""
        bucket = f"arn:aws:s3:::{self.name}"
        statement = {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [*(f"{bucket}/{prefix}/*" for prefix in prefixes), bucket],
        }
        return json.dumps({"Version": "2012-10-17", "Statement": [statement]})

    def check_from_now_on(self) -> None:
        """Let the server check every signature and policy."""
        httpx.post(f"{self.url}/moto-api/reset-auth", content=b"0")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path) -> Iterator[Bucket]:
    httpx.post(f"{server}/moto-api/reset")
    admin = _client(server, "s3")
    admin.create_bucket(Bucket=NAME)
    yield Bucket(server, tmp_path / "cache", admin)
    httpx.post(f"{server}/moto-api/reset-auth", content=b"inf")


@pytest.fixture
def shop(bucket: Bucket, make_shop_of: Any) -> Any:
    return make_shop_of("s3", bucket.source())


class Meddler:
    """A TCP proxy in front of the server: `meddle` changes, or cuts, what one connection says."""

    def __init__(self, url: str) -> None:
        self._to = int(url.rsplit(":", 1)[1])
        self.meddle: Any = None
        self._door = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._door.getsockname()[1]}"

    def close(self) -> None:
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(inner,), daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        with inner, socket.create_connection(("127.0.0.1", self._to)) as outer:
            request = b""
            while b"\r\n\r\n" not in request:
                data = inner.recv(65536)
                if not data:
                    return
                request += data
            outer.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            reply = b""
            while data := outer.recv(65536):
                reply += data
            meddle = self.meddle
            inner.sendall(meddle(request, reply) if meddle else reply)


@pytest.fixture
def meddler(server: str) -> Iterator[Meddler]:
    made = Meddler(server)
    yield made
    made.close()
