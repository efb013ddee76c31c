"""Adapters from S3: the real boto3 against moto's server, which checks signatures and policies."""

import json
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterTooLarge,
    AdapterUnsupported,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.core.remote_names import s3_root
from adex_worker.adapters.core.s3_credential import S3Credential, s3_credential
from adex_worker.adapters.sources import s3, s3_clients
from adex_worker.adapters.sources.s3 import CONNECTIONS_MAX, S3Source
from adex_worker.adapters.sources.s3_clients import S3Clients
from adex_worker.adapters.sources.transfer import Patience

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
BUCKET = "weights"
HASTE = Patience(
    tries=4, wait_first_s=0.01, wait_s_max=1.0, connect_s=1.0, read_s=2.0, grace_s=10.0
)
# What conftest.py's `make_shop` gives: a store that asks one source.
Shop = Any


def client(url: str, key: str = "admin", secret: str = "admin", service: str = "s3") -> Any:
    return boto3.session.Session().client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=2),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture
def admin(server: str) -> Iterator[Any]:
    httpx.post(f"{server}/moto-api/reset")
    made = client(server)
    made.create_bucket(Bucket=BUCKET)
    yield made
    httpx.post(f"{server}/moto-api/reset-auth", content=b"inf")


@pytest.fixture
def shop(server: str, admin: Any, make_shop_of: Any, tmp_path: Path) -> Shop:
    return make_shop_of("s3", source(server, tmp_path))


def source(
    url: str, tmp_path: Path, *roots: str, key: str = "admin", secret: str = "admin"
) -> S3Source:
    (tmp_path / "cache").mkdir(exist_ok=True)
    places = [s3_root(root) for root in roots or (f"s3://{BUCKET}/team",)]
    clients = S3Clients(
        HASTE,
        connections_max=CONNECTIONS_MAX,
        endpoint_url=url,
        region_name="us-east-1",
        own=S3Credential(key, secret),
    )
    return S3Source(places, tmp_path / "cache", patience=HASTE, clients=clients)


def upload(admin: Any, prefix: str, folder: Path, bucket: str = BUCKET) -> None:
    for path in folder.iterdir():
        admin.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())


def local_digest(shop: Shop, folder: Path) -> str:
    return shop.store.fetch(AdapterKey("", "local", str(folder))).digest


def test_an_adapter_in_s3_is_the_same_as_in_a_folder(shop: Shop, admin: Any, adapter: Path) -> None:
    upload(admin, "team/one", adapter)
    expected = local_digest(shop, adapter)
    for name in (f"s3://{BUCKET}/team/one", f"s3://{BUCKET}/team/one/", "one"):
        assert shop.fetch(name, source="s3") == expected


def test_a_large_file_comes_in_parts_beside_each_other(
    shop: Shop, admin: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 1000)
    upload(admin, "team/one", adapter)
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)


def test_an_upload_in_parts_is_verified_by_its_parts(
    shop: Shop, admin: Any, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(admin, "team/one", adapter)
    asked = {"Bucket": BUCKET, "Key": f"team/one/{WEIGHTS}"}
    data = (adapter / WEIGHTS).read_bytes()
    upload_id = admin.create_multipart_upload(**asked)["UploadId"]
    etag = admin.upload_part(**asked, PartNumber=1, UploadId=upload_id, Body=data)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    admin.complete_multipart_upload(**asked, UploadId=upload_id, MultipartUpload=parts)
    assert admin.head_object(**asked)["ETag"].endswith('-1"')
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)


def test_only_prefixes_below_the_roots_are_read(shop: Shop, admin: Any, adapter: Path) -> None:
    admin.create_bucket(Bucket="other")
    upload(admin, "team/one", adapter, "other")
    upload(admin, "team10/one", adapter)
    for name in ("s3://other/team/one", f"s3://{BUCKET}/team10/one", f"s3://{BUCKET}/one"):
        with pytest.raises(AdapterForbidden):
            shop.fetch(name, source="s3")


@pytest.mark.parametrize(
    "name",
    [
        *("s3://", "s3://B/x", "s3://weights/team/../other", "s3://weights/team//x", "../x"),
        *("a/./b", "", "/", "s3://weights/team/\n", "x\0", "s3://weights/" + "x" * 1000),
        "http://x/y",
    ],
)
def test_a_name_that_is_none_becomes_no_key(name: str, shop: Shop) -> None:
    with pytest.raises(ValidationError):
        shop.fetch(name, source="s3")


def test_what_is_missing_is_named(shop: Shop, admin: Any, adapter: Path) -> None:
    with pytest.raises(AdapterNotFound):
        shop.fetch("one", source="s3")
    admin.put_object(Bucket=BUCKET, Key=f"team/one/{CONFIG}", Body=b"{}")
    with pytest.raises(AdapterMalformed, match=WEIGHTS):
        shop.fetch("one", source="s3")
    admin.put_object(Bucket=BUCKET, Key="team/one/adapter_model.bin", Body=b"x")
    with pytest.raises(AdapterUnsupported, match="pickled"):
        shop.fetch("one", source="s3")
    admin.put_object(Bucket=BUCKET, Key=f"team/one/{WEIGHTS}", Body=b"\0" * (40 << 20))
    with pytest.raises((AdapterTooLarge, AdapterMalformed)):
        shop.fetch("one", source="s3")


def test_a_new_upload_is_a_new_version(shop: Shop, admin: Any, adapter: Path) -> None:
    upload(admin, "team/one", adapter)
    old = shop.fetch("one", source="s3")
    config = json.loads((adapter / CONFIG).read_text())
    config["lora_alpha"] = 2 * config["lora_alpha"]
    (adapter / CONFIG).write_text(json.dumps(config))
    upload(admin, "team/one", adapter)
    new = shop.fetch("one", source="s3")
    assert new != old
    assert new == local_digest(shop, adapter)


def test_an_upload_between_the_two_files_never_mixes(
    server: str, admin: Any, adapter: Path, tmp_path: Path
) -> None:
    upload(admin, "team/one", adapter)
    asked = source(server, tmp_path)
    resolved = asked.resolve(AdapterKey("", "s3", "one"))
    admin.put_object(Bucket=BUCKET, Key=f"team/one/{WEIGHTS}", Body=b"x" * 100)
    with pytest.raises(SourceUnavailable, match="changed"):
        asked.open(resolved, WEIGHTS)
    assert not asked.unchanged(resolved)
    with asked.open(resolved, CONFIG) as stream:
        assert stream.read() == (adapter / CONFIG).read_bytes()


def reader_of(url: str, name: str, *prefixes: str) -> tuple[str, str]:
    """The access key and secret of a new user who may read objects below the prefixes."""
    iam = client(url, service="iam")
    iam.create_user(UserName=name)
    if prefixes:
        resources = [f"arn:aws:s3:::{BUCKET}/{prefix}/*" for prefix in prefixes]
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=reading(*resources))
    keys = iam.create_access_key(UserName=name)["AccessKey"]
    return keys["AccessKeyId"], keys["SecretAccessKey"]


def reading(*resources: str) -> str:
    statement = {
        "Effect": "Allow",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [*resources, f"arn:aws:s3:::{BUCKET}"],
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def check_from_now_on(url: str) -> None:
    """Let the server check every signature and policy."""
    httpx.post(f"{url}/moto-api/reset-auth", content=b"0")


def test_signatures_and_policies_decide(
    server: str, admin: Any, make_shop_of: Any, adapter: Path, tmp_path: Path
) -> None:
    upload(admin, "team/one", adapter)
    key, secret = reader_of(server, "reader", "team")
    stranger = reader_of(server, "stranger")
    check_from_now_on(server)

    shop = make_shop_of("s3", source(server, tmp_path, key=key, secret=secret))
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)
    refused = source(server, tmp_path, key=stranger[0], secret=stranger[1])
    with pytest.raises(AdapterForbidden):
        make_shop_of("s3", refused).fetch("one", source="s3")
    wrong = make_shop_of("s3", source(server, tmp_path, key=key, secret="wrong"))
    with pytest.raises(SourceUnavailable, match="SignatureDoesNotMatch"):
        wrong.fetch("one", source="s3")


# Credentials of callers.


def test_a_callers_credential_reads_what_s3_lets_it_read_and_nothing_else(
    server: str, admin: Any, shop: Shop, adapter: Path
) -> None:
    upload(admin, "team/private", adapter)
    good, other = (
        ":".join(reader_of(server, name, f"team/{name}")) for name in ("private", "others")
    )
    check_from_now_on(server)
    expected = local_digest(shop, adapter)
    assert shop.fetch("private", good, source="s3") == expected
    assert shop.fetch(f"s3://{BUCKET}/team/private", good, source="s3") == expected
    # The bytes are as near as they can be, and S3 knows the credential: it is a matter of rights.
    shop.store.stage(expected)
    asked = ("private", "nowhere", f"s3://{BUCKET}/team/private")
    refusals = []
    for name in asked:
        with pytest.raises(AdapterNotFound, match="or none that this credential may read") as told:
            shop.fetch(name, other, source="s3")
        refusals.append(told.value.message.replace(name, ""))
    assert len(set(refusals)) == 1, "what is another's is not told from what is not there"
    assert shop.fetch("private", good, source="s3") == expected


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (("{0}:wrong"), "SignatureDoesNotMatch"),
        (("AKIANOBODY0000000000:{1}"), "InvalidAccessKeyId"),
    ],
)
def test_a_bad_credential_is_not_saved_by_another_ones_or_by_the_servers(
    changed: str, code: str, server: str, admin: Any, shop: Shop, adapter: Path
) -> None:
    upload(admin, "team/private", adapter)
    key, secret = reader_of(server, "reader", "team")
    check_from_now_on(server)
    shop.store.stage(shop.fetch("private", f"{key}:{secret}", source="s3"))
    with pytest.raises(AdapterForbidden, match=code) as told:
        shop.fetch("private", changed.format(key, secret), source="s3")
    assert told.value.field == "api_token"


def test_a_session_is_a_credential_of_three_parts(
    server: str, admin: Any, shop: Shop, adapter: Path
) -> None:
    upload(admin, "team/one", adapter)
    iam, sts = client(server, service="iam"), client(server, service="sts")
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = iam.create_role(RoleName="readers", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    policy = reading(f"arn:aws:s3:::{BUCKET}/team/*")
    iam.put_role_policy(RoleName="readers", PolicyName="p", PolicyDocument=policy)
    session = sts.assume_role(RoleArn=role, RoleSessionName="reading")["Credentials"]
    parts = [session[name] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
    check_from_now_on(server)
    assert shop.fetch("one", ":".join(parts), source="s3") == local_digest(shop, adapter)
    for wrong in (":".join(parts[:2]), ":".join([*parts[:2], "stale"])):
        with pytest.raises(AdapterForbidden, match="does not accept the credential"):
            shop.fetch("one", wrong, source="s3")


def test_a_credential_opens_no_bucket_outside_the_roots(
    server: str, admin: Any, shop: Shop, adapter: Path
) -> None:
    upload(admin, "elsewhere/one", adapter)
    credential = ":".join(reader_of(server, "reader", "elsewhere"))
    check_from_now_on(server)
    with pytest.raises(AdapterForbidden, match="outside the buckets"):
        shop.fetch(f"s3://{BUCKET}/elsewhere/one", credential, source="s3")


@pytest.mark.parametrize(
    "token", ["hf_canary", "canary:", ":canary", "canary:canary:", "can/ary:canary"]
)
def test_a_token_that_is_no_credential_is_refused_without_being_quoted(
    token: str, shop: Shop
) -> None:
    with pytest.raises(ValidationError, match="ACCESS_KEY:SECRET") as refused:
        shop.fetch("one", token, source="s3")
    assert refused.value.field == "api_token"
    assert "canary" not in str(refused.value) + repr(refused.value)


def test_no_failure_of_a_callers_credential_tells_its_secret(
    meddler: "Meddler", server: str, admin: Any, make_shop_of: Any, adapter: Path, tmp_path: Path
) -> None:
    upload(admin, "team/one", adapter)
    key, secret = reader_of(server, "reader", "team")
    check_from_now_on(server)
    token = "".join(("can", "ary"))
    own = f"{key}:{secret}:{token}"
    asked = source(meddler.url, tmp_path)
    shop = make_shop_of("s3", asked)
    resolved = asked.resolve(AdapterKey("t:", "s3", "one"), f"{key}:{secret}")
    told = [repr(resolved), repr(resolved.pinned), repr(s3_credential(own))]
    refusals: list[Any] = [
        lambda _, reply: reply[:40],
        lambda *_: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        lambda *_: b"nonsense",
        lambda *_: b"",
    ]
    for refuse in refusals:
        meddler.meddle = refuse
        for read in (
            lambda: shop.fetch("one", own, source="s3"),
            lambda: asked.open(resolved, WEIGHTS),
        ):
            with pytest.raises(SourceUnavailable) as failed:
                read()
            told.append("".join(traceback.format_exception(failed.value)))
    for told_once in told:
        assert not any(each in told_once for each in (key, secret, token))


def test_the_clients_of_the_credentials_used_last_are_kept_and_no_others(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_clients, "CREDENTIALS_MAX", 2)
    kept = S3Clients(HASTE, connections_max=1, endpoint_url=server, region_name="us-east-1")
    key = AdapterKey("t:", "s3", "one")
    first = kept.access(key, "a:secret").client
    kept.access(key, "b:secret")
    assert kept.access(key, "a:secret").client is first
    kept.access(key, "c:secret")
    assert kept.credentials_kept == 2
    assert kept.access(key, "a:secret").client is first
    with pytest.raises(SourceUnavailable, match="not at hand"):
        kept.access(key, "")


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


def weights_wanted(request: bytes) -> bool:
    return request.startswith(b"GET ") and WEIGHTS.encode() in request


def test_altered_bytes_never_become_an_adapter(
    meddler: Meddler, admin: Any, make_shop_of: Any, adapter: Path, tmp_path: Path
) -> None:
    upload(admin, "team/one", adapter)
    shop = make_shop_of("s3", source(meddler.url, tmp_path))

    def alter(request: bytes, reply: bytes) -> bytes:
        return reply[:-1] + bytes([reply[-1] ^ 1]) if weights_wanted(request) else reply

    meddler.meddle = alter
    with pytest.raises(SourceUnavailable, match="not those in the bucket"):
        shop.fetch("one", source="s3")
    assert shop.store.held() == ()
    meddler.meddle = None
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)


def test_a_download_that_is_cut_goes_on(
    meddler: Meddler, admin: Any, make_shop_of: Any, adapter: Path, tmp_path: Path
) -> None:
    upload(admin, "team/one", adapter)
    shop = make_shop_of("s3", source(meddler.url, tmp_path))
    cuts: list[int] = []

    def cut(request: bytes, reply: bytes) -> bytes:
        if not weights_wanted(request) or len(cuts) == 2:
            return reply
        cuts.append(len(reply))
        return reply[: len(reply) // 2]

    meddler.meddle = cut
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)
    assert len(cuts) == 2
    assert cuts[1] < cuts[0], "the second try asked for the rest only"


def test_passing_failures_are_tried_again_and_lasting_ones_are_told(
    meddler: Meddler, admin: Any, make_shop_of: Any, adapter: Path, tmp_path: Path
) -> None:
    upload(admin, "team/one", adapter)
    shop = make_shop_of("s3", source(meddler.url, tmp_path))
    left = [3]

    def refuse(request: bytes, reply: bytes) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            return reply
        return b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    meddler.meddle = refuse
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)
    left[0] = 1000
    with pytest.raises(SourceUnavailable) as told:
        shop.fetch("one", source="s3")
    assert told.value.retry_after_s


def test_an_endpoint_that_is_not_there_fails_its_own_request(
    make_shop_of: Any, adapter: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shop = make_shop_of("s3", source(f"http://127.0.0.1:{port}", tmp_path))
    with pytest.raises(SourceUnavailable, match="connection failed"):
        shop.fetch("one", source="s3")
