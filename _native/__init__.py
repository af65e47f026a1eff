"""The native floor: what must not cost a Python instruction per call."""

import sys

__all__ = ["live_objects"]


def live_objects() -> int:
    """Schedulers, calls and batches that live in this process: for the tests of leaks.

    The sum over the native modules that are loaded; each has a copy of the C core,
    with a counter of its own. Always 0 unless built with ``-Ddebug_counters=true``.
    """
    prefix = f"{__name__}."
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(prefix)]
    return sum(module.live_objects() for module in modules if hasattr(module, "live_objects"))
