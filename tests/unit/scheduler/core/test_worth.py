"""What a copy is worth: what bringing it back would take, from wherever it would have to come."""

import pytest

from adex_proto.adapter import AdapterVersion, Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence
from adex_scheduler.core.eviction import LeastValued
from adex_scheduler.core.links import Links
from adex_scheduler.core.reuse import ReuseRates


def resident(name: str, host: HostCopy, size: int = 10**8) -> Adapter:
    version = AdapterVersion(name, size, 8, 4)
    return Adapter(version, pages=1, residence=Residence.DEVICE, host=host)


@pytest.mark.parametrize("gone", [HostCopy.NONE, HostCopy.LEAVING])
def test_on_the_device_the_copy_that_would_come_from_the_disk_leaves_last(gone: HostCopy) -> None:
    order = LeastValued(ReuseRates(known_max=10), Links())
    adapters = [resident("from-disk", gone), resident("from-host", HostCopy.HELD)]
    idle = {adapter.digest: adapter for adapter in adapters}
    for adapter in adapters:
        order.note_use(adapter, now=1.0)
        order.enter(Tier.DEVICE, adapter)
    assert list(order.first_to_leave(Tier.DEVICE, idle, now=2.0)) == [adapters[1], adapters[0]]


def test_a_copy_that_loses_the_one_below_it_rises_in_the_order() -> None:
    order = LeastValued(ReuseRates(known_max=10), Links())
    first, second = resident("first", HostCopy.HELD), resident("second", HostCopy.HELD)
    for adapter in (first, second, second):
        order.note_use(adapter, now=1.0)
        order.enter(Tier.DEVICE, adapter)
    idle = {"first": first, "second": second}
    assert list(order.first_to_leave(Tier.DEVICE, idle, now=2.0)) == [first, second]
    first.host = HostCopy.NONE
    assert list(order.first_to_leave(Tier.DEVICE, idle, now=3.0)) == [second, first]
