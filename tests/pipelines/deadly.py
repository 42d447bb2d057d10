"""A task for a worker that dies. A module of its own, so that workers can import it."""

import os


def deadly(value: int) -> int:
    """The square; 3 and 4 kill their process."""
    if value in (3, 4):
        os._exit(1)
    return value**2
