"""How many bytes the disk is asked to hold: its budget, or for a while less after it was full.

A worker is given a share of a disk that others write to as well. That the share is gone shows when
a bundle cannot be kept; copies that nobody uses then leave, and the adapter is asked for again.
"""

# The parts of what the disk holds that leave for a name, one after the other: how large it is,
# nobody knows; room for it alone would be too little for the next; and one that is too large for
# the disk must not empty it.
SHARES = (1 / 8, 1 / 2)
# As long is less asked of the disk; then it is found out anew whether others left room.
LOWERED_S = 300.0


class DiskRoom:
    """What is known of a disk that took no more."""

    __slots__ = ("_bytes_max", "_until")

    def __init__(self) -> None:
        self._bytes_max = 0
        self._until = 0.0

    def bytes_max(self, budget: int, now: float) -> int:
        """What the disk is asked to hold of its `budget`."""
        return min(budget, self._bytes_max) if now < self._until else budget

    def lower(self, held: int, leaving: int, tries: int, now: float) -> bool:
        """The disk took no more than `held` bytes, of which `leaving` may leave sooner or later.

        Returns: whether some of them have to, for a name that has made room `tries` times before.
        """
        if not leaving or tries >= len(SHARES):
            return False
        self._bytes_max = held - min(max(int(held * SHARES[tries]), 1), leaving)
        self._until = now + LOWERED_S
        return True

    def forget(self) -> None:
        """Another worker has come, perhaps with another disk."""
        self._until = 0.0
