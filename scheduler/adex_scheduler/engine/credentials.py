"""The credentials of the requests under way: nowhere else, and no longer."""

from adex_proto.adapter import AdapterKey


class Credentials:
    """What credentialed keys are resolved with, for as long as a request that names them lives.

    A request is alive while anything waits for its name to be resolved, so every fetch finds its
    credential here, and nothing here outlives the last request that brought it.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, key: AdapterKey | None, credential: str) -> None:
        """A request that names `key` with `credential` begins."""
        if key is not None and key.credentialed:
            _, count = self._held.get(key.tenant, ("", 0))
            self._held[key.tenant] = credential, count + 1

    def release(self, key: AdapterKey | None) -> None:
        """Such a request is over."""
        if key is not None and key.credentialed:
            credential, count = self._held.pop(key.tenant)
            if count > 1:
                self._held[key.tenant] = credential, count - 1

    def of(self, key: AdapterKey) -> str:
        """The credential for `key`, "" where it needs none."""
        return self._held.get(key.tenant, ("", 0))[0] if key.credentialed else ""
