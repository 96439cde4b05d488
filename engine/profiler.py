"""placeholder"""

from __future__ import annotations

from typing import Any

from .instrument import Instrument


class Profile(Instrument):
    def __init__(self, engine: Any) -> None:
        self.engine = engine
