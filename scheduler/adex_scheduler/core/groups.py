"""Groups of adapters that decisions look through, each a pure function of the adapter's state."""

from typing import Final

from adex_proto.adapter import Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence


class AdapterGroup:
    """One bit for each group. Plain numbers: an adapter's groups are asked for at every change."""

    # On the device, used by no step: nobody wants it, somebody waits for it, an operator keeps it.
    DEVICE_IDLE: Final = 1
    DEVICE_WANTED: Final = 2
    DEVICE_KEPT: Final = 4
    # On the device, and used.
    DEVICE_PINNED: Final = 8
    DRAINING: Final = 16
    # In host memory, and nobody needs this copy: it may go, or an operator keeps it there.
    HOST_IDLE: Final = 32
    HOST_KEPT: Final = 64
    # On disk alone, and nobody uses it.
    DISK_IDLE: Final = 128
    # Whoever has a slot, and with it pages, and whoever is in host memory.
    IN_SLOTS: Final = 256
    IN_HOST: Final = 512


def groups_of(adapter: Adapter) -> int:
    """The groups that an adapter some tier holds belongs to, as bits."""
    residence, host, kept = adapter.residence, adapter.host, adapter.kept
    unused = not adapter.pins and not adapter.waiting
    belongs = 0
    if residence is Residence.DEVICE:
        if adapter.pins:
            belongs = 0 if kept is Tier.DEVICE else AdapterGroup.DEVICE_PINNED
        elif kept is Tier.DEVICE:
            belongs = AdapterGroup.DEVICE_KEPT
        else:
            belongs = AdapterGroup.DEVICE_WANTED if adapter.waiting else AdapterGroup.DEVICE_IDLE
    elif residence is Residence.DRAINING:
        belongs = AdapterGroup.DRAINING
    elif residence is Residence.DISK and unused and not kept:
        belongs = AdapterGroup.DISK_IDLE
    if host is HostCopy.HELD and (
        residence is Residence.DEVICE or (unused and residence is Residence.HOST)
    ):
        belongs |= AdapterGroup.HOST_KEPT if kept is Tier.HOST else AdapterGroup.HOST_IDLE
    if adapter.slot:
        belongs |= AdapterGroup.IN_SLOTS
    if host is not HostCopy.NONE:
        belongs |= AdapterGroup.IN_HOST
    return belongs
