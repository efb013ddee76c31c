"""The credentials of the requests under way: nowhere else, and no longer."""

from dataclasses import replace

from adex_proto.adapter import AdapterKey
from adex_proto.plan import AdapterCommand, Fetch


class Credentials:
    """What credentialed keys are resolved with, for as long as a request that names them lives.

    A request is alive while anything waits for its name to be resolved, so every fetch finds its
    credential here, and nothing here outlives the last request that brought it; a pin is a request
    that lives until it is unpinned.
    """

    __slots__ = ("_held", "_kept")

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}
        self._kept: set[AdapterKey] = set()

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

    def keep(self, key: AdapterKey, credential: str) -> None:
        """The name is pinned: it may be resolved again at any time until `let_go`."""
        if key not in self._kept:
            self._kept.add(key)
            self.hold(key, credential)

    def let_go(self, key: AdapterKey) -> None:
        """The name is pinned no more."""
        if key in self._kept:
            self._kept.discard(key)
            self.release(key)

    def added_to(self, command: AdapterCommand) -> AdapterCommand:
        """The command with the credential it needs; the core never sees one."""
        if isinstance(command, Fetch):
            return replace(command, credential=self.of(command.key))
        return command

    def of(self, key: AdapterKey) -> str:
        """The credential for `key`, "" where it needs none."""
        return self._held.get(key.tenant, ("", 0))[0] if key.credentialed else ""
