"""Bodies of the routes that control adapters: this server's own, vLLM's and SageMaker's; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adex_proto.adapter import Tier
from adex_proto.errors import ValidationError
from adex_scheduler.core.events import Action
from adex_scheduler.front.fields import RequestLimits, Table, boolean, choice, custom
from adex_scheduler.front.schema import (
    ADAPTER_SOURCE,
    API_TOKEN,
    NAME_SCHEMA,
    STREAM,
    AdapterName,
    check_name,
)

# Where an operator may want an adapter to be.
TIERS = {"host": Tier.HOST, "device": Tier.DEVICE}


@dataclass(frozen=True, slots=True)
class ControlWish:
    """What is to be done with an adapter; `stream` tells of its way there too."""

    action: Action
    adapter: AdapterName
    tier: Tier
    disk: bool
    stream: bool
    ignored: tuple[str, ...]
    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class LoadWish:
    """An adapter to be served under a name; "" where nothing was given."""

    name: str
    path: str
    in_place: bool
    ignored: tuple[str, ...] = ()


ADAPTER_ID = custom("adapter_id", "The adapter.", check_name, NAME_SCHEMA).demanded(
    "Name the adapter by its alias, folder or id"
)
TIER = choice("tier", "How near the device it shall be.", {name: name for name in TIERS}).otherwise(
    "device"
)
DISK = boolean("disk", "Let it be forgotten on disk as well.").otherwise(False)
_ALL = (ADAPTER_ID, ADAPTER_SOURCE, API_TOKEN, STREAM)
CONTROL = {
    Action.PRELOAD: Table("PreloadRequest", *_ALL, TIER),
    Action.PREFETCH: Table("PrefetchRequest", *_ALL),
    Action.PIN: Table("PinRequest", *_ALL, TIER),
    Action.UNPIN: Table("UnpinRequest", *_ALL),
    Action.RELOAD: Table("ReloadRequest", *_ALL),
    Action.UNLOAD: Table("UnloadRequest", *_ALL, DISK),
}

LORA_NAME = custom("lora_name", "The name to serve it under.", check_name, NAME_SCHEMA).otherwise(
    ""
)
LORA_PATH = custom("lora_path", "The adapter as requests name it.", check_name, NAME_SCHEMA)
IN_PLACE = boolean("load_inplace", "Take the place of what the name means.").otherwise(False)
LOAD = Table("LoadLoraAdapterRequest", LORA_NAME, LORA_PATH.otherwise(""), IN_PLACE)
SAGEMAKER_NAME = custom("name", "The name to serve it under.", check_name, NAME_SCHEMA)
SAGEMAKER_SOURCE = custom("src", "The adapter as requests name it.", check_name, NAME_SCHEMA)
SAGEMAKER = Table(
    "RegisterAdapterRequest", SAGEMAKER_NAME.otherwise(""), SAGEMAKER_SOURCE.otherwise("")
)


def parse_control(action: Action, body: Mapping[str, object], limits: RequestLimits) -> ControlWish:
    """The wish in `body`. Raises ValidationError for the first field that is wrong."""
    table = CONTROL[action]
    values = table.read(body, limits)
    if not values[ADAPTER_ID]:
        raise ValidationError(
            "`adapter_id` is empty",
            field="adapter_id",
            remedy="Name an adapter, not the base model",
        )
    return ControlWish(
        action=action,
        adapter=AdapterName(values[ADAPTER_ID], values[ADAPTER_SOURCE]),
        tier=TIERS[values[TIER]],
        disk=values[DISK],
        stream=values[STREAM],
        ignored=values.ignored,
        credential=values[API_TOKEN],
    )


def parse_load(body: Mapping[str, object], limits: RequestLimits) -> LoadWish:
    """vLLM's body. Raises ValidationError for the first field that is wrong."""
    values = LOAD.read(body, limits)
    path = values[LORA_PATH] or ""
    return LoadWish(values[LORA_NAME], path, values[IN_PLACE], values.ignored)


def parse_sagemaker(body: Mapping[str, object], limits: RequestLimits) -> LoadWish:
    """SageMaker's body. Raises ValidationError for the first field that is wrong."""
    values = SAGEMAKER.read(body, limits)
    name, source = values[SAGEMAKER_NAME] or "", values[SAGEMAKER_SOURCE] or ""
    return LoadWish(name, source, in_place=False, ignored=values.ignored)
