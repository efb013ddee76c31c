"""A caller's name for an adapter to the key it stands for.

Names are everyone's, whoever pays for the request, except that one asked for with a credential of
its source belongs to the holders of that credential. All names go through this module.
"""

from dataclasses import dataclass, field, replace

from adex_proto.adapter import AdapterKey, credential_tenant
from adex_proto.errors import ValidationError
from adex_scheduler.front.schema import AdapterName

# What clients send as `model` when they mean whatever is served.
ANY_MODEL = ("", "tgi", "dummy", "__base_model__")
# Schemes by which a name says where it lies; the hub's is no part of the name itself.
HUB_SCHEMES = ("hf://", "huggingface://")
S3_SCHEME = "s3://"
REVISION_SOURCES = ("hub",)
# Sources that are asked with a credential of the caller's own.
CREDENTIAL_SOURCES = ("hub", "s3")


@dataclass(frozen=True, slots=True)
class Directory:
    """The names this server answers to.

    `base_names` are the base model's; the first is the one replies carry. `aliases` are public
    adapter names set by the operator, at the start or since. Any other name is taken as the
    adapter's own id.
    """

    base_names: tuple[str, ...]
    aliases: dict[str, AdapterKey] = field(default_factory=dict[str, AdapterKey])
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

    def key_of(
        self, adapter: AdapterName | None, tenant: str, credential: str = ""
    ) -> AdapterKey | None:
        """The key an adapter's name stands for; None for the base model.

        Raises ValidationError for an empty name or revision.
        """
        if adapter is None:
            return None
        if adapter.source in (None, "local") and adapter.name in self.aliases:
            key = self.aliases[adapter.name]
        else:
            key = self._parsed(adapter, tenant)
        if credential and key.source in CREDENTIAL_SOURCES:
            return replace(key, tenant=credential_tenant(tenant, credential))
        return key

    def _parsed(self, adapter: AdapterName, tenant: str) -> AdapterKey:
        source, name = placed(adapter, self.default_source)
        revision = ""
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


def placed(adapter: AdapterName, default_source: str) -> tuple[str, str]:
    """The source a name lies in, and the name without the hub's scheme."""
    name = adapter.name
    for scheme in HUB_SCHEMES:
        if name.startswith(scheme) and adapter.source in (None, "hub"):
            return "hub", name.removeprefix(scheme)
    if name.startswith(S3_SCHEME) and adapter.source is None:
        return "s3", name
    return adapter.source or default_source, name


def _plain_path(name: str) -> str:
    """A path without the parts that change nothing, so that one folder has one name.

    `..` stays: it may change something, and whether it may be written is the worker's to say.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    plain = "/".join(parts)
    if not parts:
        return name
    return f"/{plain}" if name.startswith("/") else plain
