"""A task for a worker that dies. A module of its own, so that workers can import it."""

import os


def deadly(value: int) -> int:
    """The square; 3 kills its process."""
    if value == 3:
        os._exit(1)
    return value**2
