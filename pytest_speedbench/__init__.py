"""Gate speculative decoding of LLMs with pytest: acceptance length and speed per SPEED-Bench cell."""

__version__ = "0.1.0"
