"""How loops over pixels are compiled: once a machine, kept beside the module, and without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numba

njit: Any = numba.njit(cache=True, nogil=True, error_model="numpy")
"""no fastmath: the same results on all machines"""
elementwise: Any = numba.vectorize(cache=True)
"""a formula for one pixel -> a ufunc"""
