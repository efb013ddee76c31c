"""What a caller may write as the name of an adapter on local disk."""

from adex_proto.errors import AdapterForbidden, AdapterNotFound, ValidationError

NAME_BYTES_MAX = 1024
PART_BYTES_MAX = 255
PARTS_MAX = 32

FORBIDDEN_REMEDY = "Name a folder inside one of the server's adapter roots (--local-adapter-root)"


def local_parts(name: str) -> tuple[bool, tuple[str, ...]]:
    """Whether `name` is absolute, and its parts.

    Raises ValidationError, AdapterForbidden or AdapterNotFound. It judges the text alone, so a
    refusal tells nothing about what exists.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise _invalid(name, "is not valid Unicode") from error
    if not name or "\0" in name:
        raise _invalid(name, "is empty" if not name else "contains a NUL character")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise AdapterForbidden(
            f"adapter {name[:100]!r} leaves its folder with `..`",
            field="adapter_id",
            remedy=FORBIDDEN_REMEDY,
        )
    too_long = size > NAME_BYTES_MAX or len(parts) > PARTS_MAX
    if too_long or any(len(part.encode()) > PART_BYTES_MAX for part in parts):
        raise AdapterNotFound(
            f"adapter {name[:100]!r}... has a name of {size} bytes; names have at most"
            f" {NAME_BYTES_MAX} bytes, {PARTS_MAX} parts and {PART_BYTES_MAX} bytes per part",
            field="adapter_id",
            remedy="Send the name of an existing adapter",
        )
    return name.startswith("/"), parts


def _invalid(name: str, what: str) -> ValidationError:
    return ValidationError(
        f"`adapter_id` {name[:100]!r} {what}", field="adapter_id", remedy=FORBIDDEN_REMEDY
    )
