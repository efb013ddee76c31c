"""How often the scheduler's process looks for garbage that refers to itself.

Nearly all that a step makes is freed by counting references. Python's collector would still look at
the youngest objects every 700 that are made, several times within one decision.
"""

import gc

# Objects made and not yet freed between two looks at the youngest, and looks at these between two
# at the older ones.
_YOUNG = 50_000
_LOOKS = 20


def collect_rarely() -> None:
    """What is there now stays; look at what comes later, but seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _LOOKS, _LOOKS)
