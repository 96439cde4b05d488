"""An array's memory for other libraries."""

from __future__ import annotations


class Lent:
    """An array's own memory for NumPy, to be written too."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, *, max_version=None, **_):
        return self.array.to_dlpack_for_write(max_version=max_version)

    def __dlpack_device__(self):
        return 1, 0
