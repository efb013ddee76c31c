"""Names that operators give to adapters while the server runs, in vLLM's words; pure."""

from dataclasses import replace

from adex_proto.adapter import AdapterKey
from adex_proto.errors import AdapterNotFound, ValidationError
from adex_scheduler.front.schema import AdapterName
from adex_scheduler.front.schema_control import LoadWish
from adex_scheduler.front.tenants import Directory

# A listing of more than this many names is read by nobody; see `catalogue.LISTED_MAX`.
NAMES_MAX = 10_000


def meaning(directory: Directory, wish: LoadWish, tenant: str) -> AdapterKey:
    """What the name shall stand for. Raises ValidationError where it may not."""
    if not wish.name or not wish.path:
        raise _refusal("Both 'lora_name' and 'lora_path' must be provided.")
    if wish.name in directory.base_names:
        raise _refusal(f"The lora adapter '{wish.name}' conflicts with a served base model.")
    if wish.name in directory.aliases:
        if not wish.in_place:
            raise _refusal(
                f"The lora adapter '{wish.name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True."
            )
    elif len(directory.aliases) >= NAMES_MAX:
        raise _refusal(f"{NAMES_MAX} lora adapters have names already, the most there may be.")
    # What the name means until now is no part of what it shall mean.
    others = {name: key for name, key in directory.aliases.items() if name != wish.name}
    key = replace(directory, aliases=others).key_of(AdapterName(wish.path), tenant)
    assert key is not None
    return key


def register(directory: Directory, wish: LoadWish, key: AdapterKey) -> None:
    """Let the name stand for the adapter, which has come. Raises as `meaning` does."""
    # Somebody else may have given the name meanwhile.
    meaning(directory, wish, key.tenant)
    directory.aliases[wish.name] = key


def forget(directory: Directory, name: str) -> AdapterKey:
    """Take the name back; what it stood for. Raises ValidationError, AdapterNotFound."""
    if not name:
        raise _refusal("'lora_name' needs to be provided to unload a LoRA adapter.")
    key = directory.aliases.pop(name, None)
    if key is None:
        raise AdapterNotFound(f"The lora adapter '{name}' cannot be found.", field="lora_name")
    return key


def _refusal(message: str) -> ValidationError:
    return ValidationError(message, field="lora_name")
