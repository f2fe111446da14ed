"""What HTTP error bodies and error events of the engines say."""

from __future__ import annotations

import json

_SHOWN_CHARACTERS = 500


def error_text(body: bytes) -> str:
    """The message in the forms that engines and their web frameworks use, else the body itself.

    ``{"error": {"message": "…"}}``, ``{"error": "…"}``, ``{"object": "error", "message": "…"}``,
    ``{"detail": "…"}``.
    """
    shown = body.decode("utf-8", "replace").strip()[:_SHOWN_CHARACTERS]
    try:
        told = json.loads(body)
        error = told.get("error", told)
        text = error if isinstance(error, str) else error.get("message", error.get("detail"))
    except (ValueError, AttributeError):
        return shown
    return text if isinstance(text, str) else shown
