"""Adapters from a hub, asked by the real client over real sockets."""

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterTooLarge,
    AdapterUnsupported,
    AdexError,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.testing import tiny_config, tiny_shape, write_random_adapter

# What the fixtures of conftest.py give: a hub, and a store that asks it.
Hub = Shop = Any

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
GOOD, BAD = "hf_good_token", "hf_bad_token"


def local_digest(shop: Shop, folder: Path) -> str:
    return shop.store.fetch(AdapterKey("", "local", str(folder))).digest


def test_an_adapter_of_the_hub_is_the_same_as_in_a_folder(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/one", adapter)
    digest = shop.fetch("org/one")
    assert digest == local_digest(shop, adapter)
    shop.store.stage(digest)


def test_only_the_two_files_of_an_adapter_are_asked_for(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    (adapter / "optimizer.pt").write_bytes(b"x" * 5000)
    (adapter / "model.safetensors").write_bytes(b"x" * 5000)
    hub.publish("org/one", adapter)
    shop.fetch("org/one")
    files = {seen.path.rsplit("/", 1)[1] for seen in hub.seen if "/resolve/" in seen.path}
    assert files == {CONFIG, WEIGHTS}


def test_revision_and_folder_choose_what_is_read(shop: Shop, hub: Hub, tmp_path: Path) -> None:
    shape = tiny_shape(tiny_config())
    first = write_random_adapter(tmp_path / "r1" / "sub" / "deep", shape, rank=2, seed=1)
    second = write_random_adapter(tmp_path / "r2" / "sub" / "deep", shape, rank=2, seed=2)
    repository = hub.publish("org/many", tmp_path / "r1")
    files = {f"sub/deep/{path.name}": path.read_bytes() for path in second.iterdir()}
    repository.push(files, "refs/pr/1")
    assert shop.fetch("org/many/sub/deep") == local_digest(shop, first)
    assert shop.fetch("org/many/sub/deep", revision="refs/pr/1") == local_digest(shop, second)
    commit = repository.refs["refs/pr/1"]
    assert shop.fetch("org/many/sub/deep", revision=commit) == local_digest(shop, second)


def test_both_files_come_from_one_commit_whatever_is_pushed_meanwhile(
    shop: Shop, hub: Hub, tmp_path: Path
) -> None:
    shape = tiny_shape(tiny_config())
    old = write_random_adapter(tmp_path / "old", shape, rank=2, seed=1)
    new = write_random_adapter(tmp_path / "new", shape, rank=4, seed=2)
    repository = hub.publish("org/moving", old)
    pushed = threading.Event()
    original = hub.fault_for

    def push_after_the_first_answer(method: str, path: str) -> Any:
        if WEIGHTS in path and not pushed.is_set():
            pushed.set()
            repository.push({path.name: path.read_bytes() for path in new.iterdir()})
        return original(method, path)

    hub.fault_for = push_after_the_first_answer
    assert shop.fetch("org/moving") == local_digest(shop, old)
    assert shop.fetch("org/moving") == local_digest(shop, new)


def test_an_unchanged_commit_is_described_again_but_not_fetched_again(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/one", adapter)
    first = shop.fetch("org/one")
    fetched = len(hub.asked("GET"))
    assert shop.fetch("org/one") == first
    assert len(hub.asked("GET")) == fetched
    assert len(hub.asked("HEAD")) == 4


# Who may read.


def test_a_bad_token_is_refused_while_the_bytes_are_hot(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/private", adapter, tokens={GOOD})
    digest = shop.fetch("org/private", GOOD)
    shop.store.stage(digest)
    for token in (BAD, ""):
        with pytest.raises(AdapterNotFound) as refused:
            shop.fetch("org/private", token)
        with pytest.raises(AdapterNotFound) as missing:
            shop.fetch("org/privates", token)
        assert str(missing.value).replace("privates", "private") == str(refused.value)
    assert shop.fetch("org/private", GOOD) == digest


def test_two_good_tokens_share_the_bytes_and_are_both_asked_for(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/private", adapter, tokens={GOOD, "hf_other"})
    assert shop.fetch("org/private", GOOD) == shop.fetch("org/private", "hf_other")
    assert {seen.authorization for seen in hub.asked("HEAD")} == {
        f"Bearer {GOOD}",
        "Bearer hf_other",
    }
    assert len(hub.asked("GET", WEIGHTS)) == 1


def test_a_token_that_lost_its_rights_loses_the_adapter(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    repository = hub.publish("org/private", adapter, tokens={GOOD})
    shop.fetch("org/private", GOOD)
    repository.tokens = set()
    with pytest.raises(AdapterNotFound):
        shop.fetch("org/private", GOOD)


def test_a_gated_repository_says_so(shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/gated", adapter, tokens={GOOD}, gated=True)
    with pytest.raises(AdapterForbidden, match="gated"):
        shop.fetch("org/gated", BAD)


def test_the_servers_own_token_is_never_used_for_a_caller(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/private", adapter, tokens={"hf_of_the_server"})
    with pytest.raises(AdapterNotFound):
        shop.fetch("org/private")
    assert {seen.authorization for seen in hub.seen} == {None}


def test_the_servers_own_token_is_used_where_the_operator_says_so_and_no_other_is_sent(
    trusting_shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/private", adapter, tokens={"hf_of_the_server"})
    trusting_shop.fetch("org/private")
    with pytest.raises(AdapterNotFound):
        trusting_shop.fetch("org/private", BAD)


def test_a_private_name_without_its_credential_is_never_resolved_as_anyone(
    trusting_shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/one", adapter)
    with pytest.raises(SourceUnavailable):
        trusting_shop.store.fetch(AdapterKey("t:" + "0" * 32, "hub", "org/one"))
    assert not hub.seen


def test_a_token_goes_to_the_hub_and_to_nobody_else(
    shop: Shop, hub: Hub, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.publish("org/private", adapter, tokens={GOOD})
    shop.fetch("org/private", GOOD)
    assert [seen for seen in hub.seen if seen.cdn]
    assert all(seen.authorization is None for seen in hub.seen if seen.cdn)
    hub.faults += [hub.Fault("HEAD", CONFIG, 418)]
    errors: list[BaseException] = []
    for name, token in (("org/private", GOOD), ("org/private", BAD)):
        with pytest.raises(AdexError) as refused:
            shop.fetch(name, token)
        error: BaseException | None = refused.value
        while error is not None:
            errors.append(error)
            error = error.__cause__ or error.__context__
    shown = caplog.text + "".join(repr(each) + str(each) + repr(vars(each)) for each in errors)
    assert GOOD not in shown
    assert BAD not in shown
    assert not [each for each in errors if hasattr(each, "request")]


# What goes wrong on the way.


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(status: int, shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/one", adapter)
    hub.faults += [hub.Fault("HEAD", CONFIG, status), hub.Fault("GET", WEIGHTS, status)]
    assert shop.fetch("org/one") == local_digest(shop, adapter)


def test_a_hub_that_stays_broken_is_given_up_with_a_hint(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/one", adapter)
    hub.faults += [hub.Fault("HEAD", CONFIG, 503)] * 10
    with pytest.raises(SourceUnavailable, match=r"answered 503 \(4 tries\)") as given_up:
        shop.fetch("org/one")
    assert given_up.value.retry_after_s
    assert len(hub.asked("HEAD", CONFIG)) == 4


def test_a_hub_that_asks_for_a_long_wait_is_not_waited_for(
    shop: Shop, hub: Hub, adapter: Path
) -> None:
    hub.publish("org/one", adapter)
    hub.faults += [hub.Fault("HEAD", CONFIG, 429, {"Retry-After": "120"})]
    with pytest.raises(SourceUnavailable) as given_up:
        shop.fetch("org/one")
    assert given_up.value.retry_after_s == 120


def test_a_download_that_is_cut_goes_on_where_it_ended(shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/one", adapter)
    digest_of_weights = next(iter(hub.repositories["org/one"].commits.values()))[WEIGHTS]
    cut = len(digest_of_weights) // 2
    original = hub.fault_for
    left = [hub.Fault("GET", "", cut_at=cut)]

    def cut_the_cdn_once(method: str, path: str) -> Any:
        if method == "GET" and "/resolve/" not in path and left:
            return left.pop()
        return original(method, path)

    hub.fault_for = cut_the_cdn_once
    assert shop.fetch("org/one") == local_digest(shop, adapter)
    assert [seen.range for seen in hub.seen if seen.cdn] == [None, f"bytes={cut}-"]


def test_altered_bytes_never_become_an_adapter(shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/one", adapter)
    original = hub.fault_for

    def alter_the_cdn(method: str, path: str) -> Any:
        cdn = method == "GET" and "/resolve/" not in path
        return hub.Fault("GET", "", altered=True) if cdn else original(method, path)

    hub.fault_for = alter_the_cdn
    with pytest.raises(SourceUnavailable, match="not those the hub has"):
        shop.fetch("org/one")
    assert shop.store.held() == ()
    hub.fault_for = original
    assert shop.fetch("org/one") == local_digest(shop, adapter)


def test_a_small_file_is_verified_too(shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/one", adapter)
    assert len((adapter / CONFIG).read_bytes()) < 1024
    hub.faults += [hub.Fault("GET", CONFIG, altered=True)] * 10
    with pytest.raises(SourceUnavailable, match="not those the hub has"):
        shop.fetch("org/one")


def test_a_hung_hub_delays_no_other_adapter_and_ends(shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/hung", adapter)
    hub.faults += [hub.Fault("HEAD", "org/hung", seconds=3.0)] * 10
    with ThreadPoolExecutor(1) as pool:
        began_s = time.monotonic()
        hung = pool.submit(shop.fetch, "org/hung")
        local_digest(shop, adapter)
        assert time.monotonic() - began_s < 1.0
        with pytest.raises(SourceUnavailable, match="ReadTimeout"):
            hung.result(timeout=20)


def test_nothing_is_left_of_failed_downloads(shop: Shop, hub: Hub, adapter: Path) -> None:
    hub.publish("org/one", adapter)
    hub.faults += [hub.Fault("GET", WEIGHTS, 500)] * 10
    with pytest.raises(SourceUnavailable):
        shop.fetch("org/one")
    assert shop.left_over == []


def test_an_offline_server_says_so(
    shop: Shop, hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/one", adapter)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match="HF_HUB_OFFLINE"):
        shop.fetch("org/one")
    assert not hub.seen


# What is there.


def test_what_is_missing_is_named(shop: Shop, hub: Hub, adapter: Path) -> None:
    repository = hub.publish("org/one", adapter)
    with pytest.raises(AdapterNotFound, match="no revision 'v9'"):
        shop.fetch("org/one", revision="v9")
    with pytest.raises(AdapterNotFound):
        shop.fetch("org/one/nowhere")
    repository.push({"README.md": b"nothing"})
    with pytest.raises(AdapterMalformed, match=CONFIG):
        shop.fetch("org/one")
    repository.push({CONFIG: (adapter / CONFIG).read_bytes()})
    with pytest.raises(AdapterMalformed, match=WEIGHTS):
        shop.fetch("org/one")
    pickled = {"adapter_model.bin": b"x" * 2000}
    repository.push({CONFIG: (adapter / CONFIG).read_bytes(), **pickled})
    with pytest.raises(AdapterUnsupported, match="pickled"):
        shop.fetch("org/one")
    assert not hub.asked("GET")


def test_a_file_too_large_for_any_budget_is_refused_unread(
    shop: Shop, hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    repository = hub.publish("org/one", adapter)
    config = repository.commits[repository.refs["main"]][CONFIG]
    repository.push({CONFIG: config, WEIGHTS: b"\0" * (40 << 20)})
    with pytest.raises(AdapterTooLarge):
        shop.fetch("org/one")
    assert not hub.asked("GET", WEIGHTS)
    repository.push({CONFIG: b"{" * (2 << 20), WEIGHTS: b"\0" * 2000})
    with pytest.raises(AdapterMalformed, match="limit is 1048576"):
        shop.fetch("org/one")
    assert len(hub.asked("GET")) == 1, "the first config alone"


def test_a_malformed_adapter_is_refused_again_without_another_download(
    shop: Shop, hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    tensors.pop(min(tensors))
    save_file(tensors, adapter / WEIGHTS)
    hub.publish("org/broken", adapter)
    for _ in range(2):
        with pytest.raises(AdapterMalformed):
            shop.fetch("org/broken")
    assert len(hub.asked("GET", WEIGHTS)) == 1


def test_a_config_that_peft_writes_is_read(shop: Shop, hub: Hub, adapter: Path) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    written = LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"]).to_dict()
    (adapter / CONFIG).write_text(json.dumps(written | config, default=list))
    hub.publish("org/one", adapter)
    assert shop.fetch("org/one")


@pytest.mark.parametrize(
    "name",
    [
        *("one", "org/", "/org/one", "org/../one", "org/one/..", "org/one/.", "org//one"),
        *("org/on e", "org/one/", "org/a--b", "org/one.git", "https://evil/x", "org/one\n"),
        *("ORG/" + "x" * 200, "org/one/%2e%2e", "org/one/a\\b", "örg/one", "org/one?x=1"),
        *("org/one#x", "org/one/\0"),
    ],
)
def test_a_name_that_is_none_reaches_no_address(name: str, shop: Shop, hub: Hub) -> None:
    with pytest.raises(ValidationError):
        shop.fetch(name)
    assert not hub.seen


@pytest.mark.parametrize(
    "revision", ["../../x", "a/../b", "/main", "ma in", "main\n", "a//b", "x" * 200, "-x"]
)
def test_a_revision_that_is_none_reaches_no_address(revision: str, shop: Shop, hub: Hub) -> None:
    with pytest.raises(ValidationError):
        shop.fetch("org/one", revision=revision)
    assert not hub.seen
