"""The name under which MXNet programs catch errors."""

from .engine import Error as MXNetError

__all__ = ["MXNetError"]
