"""Callers who bring a credential of their own for S3: it decides, and stays secret."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterNotFound,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.core.s3_credential import s3_credential
from adex_worker.adapters.sources import s3_clients

# What the fixtures of conftest.py give: a bucket, a proxy before it, and a store that asks it.
Bucket = Meddler = Shop = Any

WEIGHTS = "adapter_model.safetensors"
BUCKET = "weights"


def local_digest(shop: Shop, folder: Path) -> str:
    return shop.store.fetch(AdapterKey("", "local", str(folder))).digest


def test_a_callers_credential_reads_what_s3_lets_it_read_and_nothing_else(
    bucket: Bucket, shop: Shop, adapter: Path
) -> None:
    bucket.upload("team/private", adapter)
    good, other = (":".join(bucket.reader(name, f"team/{name}")) for name in ("private", "others"))
    bucket.check_from_now_on()
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
    changed: str, code: str, bucket: Bucket, shop: Shop, adapter: Path
) -> None:
    bucket.upload("team/private", adapter)
    key, secret = bucket.reader("reader", "team")
    bucket.check_from_now_on()
    shop.store.stage(shop.fetch("private", f"{key}:{secret}", source="s3"))
    with pytest.raises(AdapterForbidden, match=code) as told:
        shop.fetch("private", changed.format(key, secret), source="s3")
    assert told.value.field == "api_token"


def test_a_session_is_a_credential_of_three_parts(
    bucket: Bucket, shop: Shop, adapter: Path
) -> None:
    bucket.upload("team/one", adapter)
    iam, sts = bucket.client("iam"), bucket.client("sts")
    trust = json.dumps({"Version": "2012-10-17", "Statement": []})
    role = iam.create_role(RoleName="readers", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    policy = bucket.reading("team")
    iam.put_role_policy(RoleName="readers", PolicyName="p", PolicyDocument=policy)
    session = sts.assume_role(RoleArn=role, RoleSessionName="reading")["Credentials"]
    parts = [session[name] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")]
    bucket.check_from_now_on()
    assert shop.fetch("one", ":".join(parts), source="s3") == local_digest(shop, adapter)
    for wrong in (":".join(parts[:2]), ":".join([*parts[:2], "stale"])):
        with pytest.raises(AdapterForbidden, match="does not accept the credential"):
            shop.fetch("one", wrong, source="s3")


def test_a_credential_opens_no_bucket_outside_the_roots(
    bucket: Bucket, shop: Shop, adapter: Path
) -> None:
    bucket.upload("elsewhere/one", adapter)
    credential = ":".join(bucket.reader("reader", "elsewhere"))
    bucket.check_from_now_on()
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
    meddler: Meddler, bucket: Bucket, make_shop_of: Any, adapter: Path
) -> None:
    bucket.upload("team/one", adapter)
    key, secret = bucket.reader("reader", "team")
    bucket.check_from_now_on()
    token = "".join(("can", "ary"))
    own = f"{key}:{secret}:{token}"
    asked = bucket.source(url=meddler.url)
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
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_clients, "CREDENTIALS_MAX", 2)
    kept = bucket.clients()
    key = AdapterKey("t:", "s3", "one")
    first = kept.access(key, "a:secret").client
    kept.access(key, "b:secret")
    assert kept.access(key, "a:secret").client is first
    kept.access(key, "c:secret")
    assert kept.credentials_kept == 2
    assert kept.access(key, "a:secret").client is first
    with pytest.raises(SourceUnavailable, match="not at hand"):
        kept.access(key, "")
