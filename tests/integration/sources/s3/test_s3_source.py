"""Adapters from S3: the real boto3 against moto's server, which checks signatures and policies."""

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterTooLarge,
    AdapterUnsupported,
    CacheFull,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.sources import s3 as s3_source
from adex_worker.adapters.sources import transfer

# What the fixtures of conftest.py give: a bucket, a proxy before it, and a store that asks it.
Bucket = Meddler = Shop = Any

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
BUCKET = "weights"


def local_digest(shop: Shop, folder: Path) -> str:
    return shop.store.fetch(AdapterKey("", "local", str(folder))).digest


def test_an_adapter_in_s3_is_the_same_as_in_a_folder(
    shop: Shop, bucket: Bucket, adapter: Path
) -> None:
    bucket.upload("team/one", adapter)
    expected = local_digest(shop, adapter)
    for name in (f"s3://{BUCKET}/team/one", f"s3://{BUCKET}/team/one/", "one"):
        assert shop.fetch(name, source="s3") == expected


def test_a_large_file_comes_in_parts_beside_each_other(
    shop: Shop, bucket: Bucket, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_source, "_PART_BYTES", 1000)
    bucket.upload("team/one", adapter)
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)


def test_a_file_too_large_for_memory_comes_onto_the_disk_and_leaves_nothing_there(
    shop: Shop, bucket: Bucket, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_source, "_PART_BYTES", 1000)
    monkeypatch.setattr(transfer, "MEMORY_BYTES_MAX", 1000)
    bucket.upload("team/one", adapter)
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)
    left = [path.suffix for path in bucket.scratch.rglob("*") if path.is_file()]
    assert left == [".bundle"]


def test_a_disk_too_full_for_a_large_file_says_so_before_it_is_fetched(
    shop: Shop, bucket: Bucket, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "MEMORY_BYTES_MAX", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full)
    bucket.upload("team/one", adapter)
    with pytest.raises(CacheFull, match="could not be kept"):
        shop.fetch("one", source="s3")


def test_an_upload_in_parts_is_verified_by_its_parts(
    shop: Shop, bucket: Bucket, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("team/one", adapter)
    asked = {"Bucket": BUCKET, "Key": f"team/one/{WEIGHTS}"}
    data = (adapter / WEIGHTS).read_bytes()
    upload_id = bucket.admin.create_multipart_upload(**asked)["UploadId"]
    etag = bucket.admin.upload_part(**asked, PartNumber=1, UploadId=upload_id, Body=data)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    bucket.admin.complete_multipart_upload(**asked, UploadId=upload_id, MultipartUpload=parts)
    assert bucket.admin.head_object(**asked)["ETag"].endswith('-1"')
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)


def test_only_prefixes_below_the_roots_are_read(shop: Shop, bucket: Bucket, adapter: Path) -> None:
    bucket.admin.create_bucket(Bucket="other")
    bucket.upload("team/one", adapter, "other")
    bucket.upload("team10/one", adapter)
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


def test_what_is_missing_is_named(shop: Shop, bucket: Bucket, adapter: Path) -> None:
    with pytest.raises(AdapterNotFound):
        shop.fetch("one", source="s3")
    bucket.admin.put_object(Bucket=BUCKET, Key=f"team/one/{CONFIG}", Body=b"{}")
    with pytest.raises(AdapterMalformed, match=WEIGHTS):
        shop.fetch("one", source="s3")
    bucket.admin.put_object(Bucket=BUCKET, Key="team/one/adapter_model.bin", Body=b"x")
    with pytest.raises(AdapterUnsupported, match="pickled"):
        shop.fetch("one", source="s3")
    bucket.admin.put_object(Bucket=BUCKET, Key=f"team/one/{WEIGHTS}", Body=b"\0" * (40 << 20))
    with pytest.raises((AdapterTooLarge, AdapterMalformed)):
        shop.fetch("one", source="s3")


def test_a_new_upload_is_a_new_version(shop: Shop, bucket: Bucket, adapter: Path) -> None:
    bucket.upload("team/one", adapter)
    old = shop.fetch("one", source="s3")
    config = json.loads((adapter / CONFIG).read_text())
    config["lora_alpha"] = 2 * config["lora_alpha"]
    (adapter / CONFIG).write_text(json.dumps(config))
    bucket.upload("team/one", adapter)
    new = shop.fetch("one", source="s3")
    assert new != old
    assert new == local_digest(shop, adapter)


def test_an_upload_between_the_two_files_never_mixes(bucket: Bucket, adapter: Path) -> None:
    bucket.upload("team/one", adapter)
    asked = bucket.source()
    resolved = asked.resolve(AdapterKey("", "s3", "one"))
    bucket.admin.put_object(Bucket=BUCKET, Key=f"team/one/{WEIGHTS}", Body=b"x" * 100)
    with pytest.raises(SourceUnavailable, match="changed"):
        asked.open(resolved, WEIGHTS)
    assert not asked.unchanged(resolved)
    with asked.open(resolved, CONFIG) as stream:
        assert stream.read() == (adapter / CONFIG).read_bytes()


def test_signatures_and_policies_decide(bucket: Bucket, make_shop_of: Any, adapter: Path) -> None:
    bucket.upload("team/one", adapter)
    key, secret = bucket.reader("reader", "team")
    stranger = bucket.reader("stranger")
    bucket.check_from_now_on()

    shop = make_shop_of("s3", bucket.source(key, secret))
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)
    refused = bucket.source(*stranger)
    with pytest.raises(AdapterForbidden):
        make_shop_of("s3", refused).fetch("one", source="s3")
    wrong = make_shop_of("s3", bucket.source(key, "wrong"))
    with pytest.raises(SourceUnavailable, match="SignatureDoesNotMatch"):
        wrong.fetch("one", source="s3")


def weights_wanted(request: bytes) -> bool:
    return request.startswith(b"GET ") and WEIGHTS.encode() in request


def test_altered_bytes_never_become_an_adapter(
    meddler: Meddler, bucket: Bucket, make_shop_of: Any, adapter: Path
) -> None:
    bucket.upload("team/one", adapter)
    shop = make_shop_of("s3", bucket.source(url=meddler.url))

    def alter(request: bytes, reply: bytes) -> bytes:
        return reply[:-1] + bytes([reply[-1] ^ 1]) if weights_wanted(request) else reply

    meddler.meddle = alter
    with pytest.raises(SourceUnavailable, match="not those in the bucket"):
        shop.fetch("one", source="s3")
    assert shop.store.held() == ()
    meddler.meddle = None
    assert shop.fetch("one", source="s3") == local_digest(shop, adapter)


def test_a_download_that_is_cut_goes_on(
    meddler: Meddler, bucket: Bucket, make_shop_of: Any, adapter: Path
) -> None:
    bucket.upload("team/one", adapter)
    shop = make_shop_of("s3", bucket.source(url=meddler.url))
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
    meddler: Meddler, bucket: Bucket, make_shop_of: Any, adapter: Path
) -> None:
    bucket.upload("team/one", adapter)
    shop = make_shop_of("s3", bucket.source(url=meddler.url))
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
    bucket: Bucket, make_shop_of: Any, adapter: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shop = make_shop_of("s3", bucket.source(url=f"http://127.0.0.1:{port}"))
    with pytest.raises(SourceUnavailable, match="connection failed"):
        shop.fetch("one", source="s3")
