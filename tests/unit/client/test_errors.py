"""The client's tree of errors mirrors the server's."""

import pytest

from adex import errors as client
from adex_proto import errors as server

FAULTS = ("CallerError", "CapacityError", "ServerError")


@pytest.mark.parametrize("code", sorted(server.ERRORS_BY_CODE))
def test_every_code_of_the_server_is_a_class_of_the_same_name_here(code: str) -> None:
    assert client.ERRORS_BY_CODE[code].__name__ == server.ERRORS_BY_CODE[code].__name__


@pytest.mark.parametrize("code", sorted(server.ERRORS_BY_CODE))
def test_both_sides_agree_on_whose_fault_it_is(code: str) -> None:
    def faults(kind: type) -> set[str]:
        return {base.__name__ for base in kind.__mro__} & set(FAULTS)

    assert faults(client.ERRORS_BY_CODE[code]) == faults(server.ERRORS_BY_CODE[code])


def test_every_leaf_stands_in_the_drawing_with_its_code() -> None:
    assert client.__doc__ is not None
    rows = {tuple(line.split("─ ")[-1].split()[:2]) for line in client.__doc__.splitlines()}
    for code, kind in client.ERRORS_BY_CODE.items():
        assert (kind.__name__, code) in rows


def test_no_two_leaves_share_a_code() -> None:
    leaves = [kind for kind in vars(client).values() if isinstance(kind, type)]
    codes = [
        kind.code for kind in leaves if issubclass(kind, client.AdexError) and "code" in vars(kind)
    ]
    assert len(codes) == len(set(codes))
