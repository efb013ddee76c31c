"""Requests about adapters: what is held for them, and for how long."""

from adex_proto.adapter import AdapterKey, credential_tenant
from adex_proto.errors import Overloaded, PinRefused
from adex_scheduler.core.events import Action
from adex_scheduler.engine.control import Askings, ControlRequest
from adex_scheduler.engine.credentials import Credentials


def test_a_pins_credential_is_kept_for_as_long_as_the_core_has_the_pin() -> None:
    pins: set[AdapterKey] = set()
    credentials = Credentials()
    askings = Askings(credentials, pins.__contains__)
    tenant = credential_tenant("", "hf_secret")
    key = AdapterKey(tenant, "hub", "org/private")

    def begin(action: Action, number: int) -> None:
        askings.begin(ControlRequest(action, tenant, key, credential="hf_secret"), number)

    begin(Action.PIN, 1)
    pins.add(key)
    askings.fail(1, Overloaded("whoever asked went away meanwhile"))
    assert credentials.of(key) == "hf_secret"
    begin(Action.UNLOAD, 2)
    askings.fail(2, Overloaded("too many changes are under way, so the pin stands"))
    assert credentials.of(key) == "hf_secret"
    begin(Action.PIN, 3)
    pins.clear()
    askings.fail(3, PinRefused("in another tier it takes too much, so the pin has ended"))
    assert len(credentials) == 0
