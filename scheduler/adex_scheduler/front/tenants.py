"""Credential to tenant, and a caller's name for an adapter to the key it stands for.

Everyone is one tenant here ("" : everyone). All names go through this module, so that private
adapters need a change in this one place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adex_proto.adapter import AdapterKey
from adex_proto.errors import ValidationError
from adex_scheduler.front.schema import AdapterName

# What clients send as `model` when they mean whatever is served.
ANY_MODEL = ("", "tgi", "dummy", "__base_model__")
REVISION_SOURCES = ("hub", "s3")


def tenant_of(credential: str | None) -> str:
    """The tenant a credential stands for: for now everyone is one."""
    del credential
    return ""


@dataclass(frozen=True, slots=True)
class Directory:
    """The names this server answers to.

    `base_names` are the base model's; the first is the one replies carry. `aliases` are public
    adapter names set by the operator. Any other name is taken as the adapter's own id.
    """

    base_names: tuple[str, ...]
    aliases: Mapping[str, AdapterKey] = field(default_factory=dict[str, AdapterKey])
    default_source: str = "local"

    @property
    def base_name(self) -> str:
        """The base model's name in replies."""
        return self.base_names[0]

    def adapter_of_model(self, model: str | None, source: str | None = None) -> AdapterName | None:
        """What the OpenAI routes' `model` names: an adapter, or None for the base model.

        "base:adapter" names an adapter too. An alias wins over the base model's short names.
        """
        if model is None or model in ANY_MODEL:
            return None
        if model in self.aliases:
            return AdapterName(model, source)
        if model in self.base_names:
            return None
        for base in self.base_names:
            if model.startswith(f"{base}:"):
                return AdapterName(model.removeprefix(f"{base}:"), source)
        return AdapterName(model, source)

    def key_of(self, adapter: AdapterName | None, tenant: str) -> AdapterKey | None:
        """The key an adapter's name stands for; None for the base model.

        Raises ValidationError for an empty name or revision.
        """
        if adapter is None:
            return None
        source = adapter.source or self.default_source
        if adapter.source in (None, "local") and adapter.name in self.aliases:
            return self.aliases[adapter.name]
        name, revision = adapter.name, ""
        if source in REVISION_SOURCES and "@" in name:
            name, _, revision = name.rpartition("@")
        if not name or name != name.strip() or (not revision and name.endswith("@")):
            raise ValidationError(
                f"`adapter_id` is empty or padded, got {adapter.name!r}",
                field="adapter_id",
                remedy="Name the adapter by its alias, folder or id",
            )
        if source == "local":
            name = _plain_path(name)
        return AdapterKey(tenant, source, name, revision)


def _plain_path(name: str) -> str:
    """A path without the parts that change nothing, so that one folder has one name.

    `..` stays: it may change something, and whether it may be written is the worker's to say.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    plain = "/".join(parts)
    if not parts:
        return name
    return f"/{plain}" if name.startswith("/") else plain
