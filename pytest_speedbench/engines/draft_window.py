"""How many draft tokens an engine must be told for a profile's ``draft_tokens`` = k.

All engines emit at most k + 1 tokens per step; they differ in what their flag counts. SGLang's is
the verify window, which has a slot for the token that is already known; the others count drafts.
Sources: vLLM ``num_speculative_tokens``, SGLang ``--speculative-num-draft-tokens``, TensorRT-LLM
``max_draft_len``, llama.cpp ``--spec-draft-n-max``.
"""

from __future__ import annotations

EXTRA_SLOTS = {"vllm": 0, "sglang": 1, "trtllm": 0, "llamacpp": 0}
"""What the engine's flag counts beside the drafts of one step."""


def flag_value(engine: str, draft_tokens: int) -> int:
    """The engine's own number for k ``draft_tokens`` per step."""
    return draft_tokens + EXTRA_SLOTS[engine]


def drafts_of(engine: str, flag: int) -> int:
    """The k that the engine's own number stands for."""
    return flag - EXTRA_SLOTS[engine]
