"""What a request's name, source and token come to mean."""

import pytest

from adex_proto.adapter import AdapterKey, Tier, credential_tenant
from adex_proto.errors import ValidationError
from adex_proto.plan import Fetch
from adex_proto.sampling import SamplingParams
from adex_scheduler.aliases import read_alias
from adex_scheduler.engine import AdapterStatus, EngineRequest
from adex_scheduler.engine.credentials import Credentials
from adex_scheduler.front import catalogue
from adex_scheduler.front.catalogue import known_adapters
from adex_scheduler.front.fields import RequestLimits, Table, Values
from adex_scheduler.front.listing import public_names
from adex_scheduler.front.schema import ADAPTER_SOURCE, API_TOKEN, AdapterName
from adex_scheduler.front.tenants import Directory

ALIASES = {"friendly": AdapterKey("", "hub", "org/one", "v1")}
DIRECTORY = Directory(("base",), ALIASES)


@pytest.mark.parametrize(
    ("name", "source", "key"),
    [
        ("org/one", "hub", AdapterKey("", "hub", "org/one")),
        ("org/one@v2", "hub", AdapterKey("", "hub", "org/one", "v2")),
        ("org/one/sub@refs/pr/1", "hub", AdapterKey("", "hub", "org/one/sub", "refs/pr/1")),
        ("hf://org/one@v2", None, AdapterKey("", "hub", "org/one", "v2")),
        ("huggingface://org/one", "hub", AdapterKey("", "hub", "org/one")),
        ("s3://bucket/a@b", None, AdapterKey("", "s3", "s3://bucket/a@b")),
        ("s3://bucket/a", "local", AdapterKey("", "local", "s3:/bucket/a")),
        ("team/a", "s3", AdapterKey("", "s3", "team/a")),
        ("org/one", None, AdapterKey("", "local", "org/one")),
        ("friendly", None, AdapterKey("", "hub", "org/one", "v1")),
        ("friendly", "hub", AdapterKey("", "hub", "friendly")),
    ],
)
def test_a_name_lies_where_its_source_or_its_scheme_says(
    name: str, source: str | None, key: AdapterKey
) -> None:
    assert DIRECTORY.key_of(AdapterName(name, source), "") == key


def test_the_servers_default_source_takes_what_says_nothing() -> None:
    directory = Directory(("base",), {}, "hub")
    assert directory.key_of(AdapterName("org/one"), "") == AdapterKey("", "hub", "org/one")


def test_a_token_makes_a_remote_name_its_own_and_changes_no_other() -> None:
    mine = credential_tenant("", "hf_mine")
    asked = AdapterName("org/one", "hub")
    assert DIRECTORY.key_of(asked, "", "hf_mine") == AdapterKey(mine, "hub", "org/one")
    alias = DIRECTORY.key_of(AdapterName("friendly"), "", "hf_mine")
    assert alias == AdapterKey(mine, "hub", "org/one", "v1")
    in_s3 = DIRECTORY.key_of(AdapterName("s3://bucket/one"), "", "hf_mine")
    assert in_s3 == AdapterKey(mine, "s3", "s3://bucket/one")
    local = DIRECTORY.key_of(AdapterName("org/one", "local"), "", "hf_mine")
    assert local == AdapterKey("", "local", "org/one")


def read(raw: dict[str, object]) -> Values:
    return Table("naming", ADAPTER_SOURCE, API_TOKEN).read(raw, RequestLimits())


@pytest.mark.parametrize("source", ["hf", "huggingface", "hub"])
def test_the_hub_has_three_names(source: str) -> None:
    assert read({"adapter_source": source})[ADAPTER_SOURCE] == "hub"


@pytest.mark.parametrize("token", ["", "hf canary", "hf\ncanary", "canary\u00e9" * 2, ["canary"]])
def test_a_token_that_is_none_is_refused_without_being_quoted(token: object) -> None:
    if token == "":
        assert read({"api_token": token})[API_TOKEN] == ""
        return
    with pytest.raises(ValidationError) as refused:
        read({"api_token": token})
    assert "canary" not in str(refused.value) + repr(refused.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("n=hf://org/one", AdapterKey("", "hub", "org/one")),
        ("n=hf://org/one@v1", AdapterKey("", "hub", "org/one", "v1")),
        ("n=s3://bucket/a", AdapterKey("", "s3", "s3://bucket/a")),
        ("n=nowhere/at/all", AdapterKey("", "local", "nowhere/at/all")),
    ],
)
def test_an_alias_may_lie_anywhere(text: str, key: AdapterKey) -> None:
    assert read_alias(text) == ("n", key)


def test_a_listing_ends_and_looks_at_no_more_aliases_than_it_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "LISTED_MAX", 3)
    aliases = {f"n{index}": AdapterKey("", "hub", f"org/{index}") for index in range(5)}
    looked_at: list[AdapterKey] = []
    look = catalogue._identity
    monkeypatch.setattr(
        catalogue, "_identity", lambda key, places: looked_at.append(key) or look(key, places)
    )
    cards = known_adapters(Directory(("base",), aliases), ["/nowhere"], ["/nowhere/x"], [])
    assert [card.name for card in cards] == ["n0", "n1", "n2"]
    assert len(looked_at) == 3


def test_names_of_credentials_are_listed_for_nobody() -> None:
    private = AdapterKey(credential_tenant("", "hf_mine"), "hub", "org/secret")
    status = AdapterStatus(private, "d" * 64, Tier.DEVICE, 1, 1, 0, 0.0)
    assert known_adapters(DIRECTORY, [], [], [status])[0].tier == "absent"
    assert [card.name for card in known_adapters(DIRECTORY, [], [], [status])] == ["friendly"]


def test_a_credential_is_held_as_long_as_a_request_that_brought_it() -> None:
    held = Credentials()
    key = AdapterKey(credential_tenant("", "hf_mine"), "hub", "org/one")
    for _ in range(2):
        held.hold(key, "hf_mine")
    held.hold(AdapterKey("", "hub", "org/one"), "")
    held.release(key)
    assert held.of(key) == "hf_mine"
    held.release(key)
    assert held.of(key) == ""
    assert len(held) == 0


def test_a_credential_shows_in_no_repr() -> None:
    request = EngineRequest("r", "", None, (1,), SamplingParams(2), credential="hf_mine")
    assert "hf_mine" not in repr(request) + repr(Fetch(AdapterKey("", "hub", "a/b"), "hf_mine"))


def test_publicly_an_adapter_goes_by_its_aliases_or_its_own_name_and_a_private_one_by_none() -> (
    None
):
    one = AdapterKey("", "hub", "org/one", "v1")
    directory = Directory(("base",), {"friendly": one, "kind": one})
    private = AdapterKey(credential_tenant("", "hf_token"), "hub", "acme/secret")
    keys = [one, AdapterKey("", "hub", "org/two", "main"), AdapterKey("", "local", "sql"), private]
    assert public_names(directory, keys) == ["friendly", "kind", "org/two@main", "sql"]
