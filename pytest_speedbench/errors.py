"""The exceptions of this package.

SpeedbenchError
  ConfigError        what the user asked for cannot be done; shown as pytest.UsageError, exit 4
  EngineError        the engine did not do its part
    EngineStartError   it exited, or was not ready in time
    EngineDied         it was ready once and is gone
  RequestError       one turn did not finish as it should; carries a reason code
  InvalidRun         a cell was measured but cannot carry a verdict; carries a reason code
"""

from __future__ import annotations


class SpeedbenchError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(SpeedbenchError):
    """An option, file or combination that cannot work. The message names the valid choices."""


class EngineError(SpeedbenchError):
    """The inference engine failed."""


class EngineStartError(EngineError):
    """The engine exited before it was ready, or was not ready before the deadline."""


class EngineDied(EngineError):
    """The engine process ended while it was still needed."""


class RequestError(SpeedbenchError):
    """One turn failed. ``reason`` is a stable code such as ``http_400`` or ``stream_cut``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidRun(SpeedbenchError):
    """A cell whose measurement cannot carry a verdict. ``reason`` is a code of DESIGN's list."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"INVALID {reason}: {message}")
        self.reason = reason
