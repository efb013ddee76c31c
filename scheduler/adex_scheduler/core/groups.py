"""Groups of adapters that decisions look through, each a pure function of the adapter's state."""

from typing import Final

from adex_proto.adapter import Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence


class Group:
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
            belongs = 0 if kept is Tier.DEVICE else Group.DEVICE_PINNED
        elif kept is Tier.DEVICE:
            belongs = Group.DEVICE_KEPT
        else:
            belongs = Group.DEVICE_WANTED if adapter.waiting else Group.DEVICE_IDLE
    elif residence is Residence.DRAINING:
        belongs = Group.DRAINING
    elif residence is Residence.DISK and unused and not kept:
        belongs = Group.DISK_IDLE
    if host is HostCopy.HELD and (
        residence is Residence.DEVICE or (unused and residence is Residence.HOST)
    ):
        belongs |= Group.HOST_KEPT if kept is Tier.HOST else Group.HOST_IDLE
    if adapter.slot:
        belongs |= Group.IN_SLOTS
    if host is not HostCopy.NONE:
        belongs |= Group.IN_HOST
    return belongs
