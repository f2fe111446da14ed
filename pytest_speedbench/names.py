"""The axes of the plan by name. Apart from ``cells``, so that options cost no import time."""

SPLITS = ("qualitative", "throughput")
CATEGORIES = (
    "coding",
    "humanities",
    "math",
    "multilingual",
    "qa",
    "rag",
    "reasoning",
    "roleplay",
    "stem",
    "summarization",
    "writing",
)
OVERALL = "overall"
DIFFICULTIES = ("low_entropy", "mixed", "high_entropy")
ISLS = ("1k", "2k", "8k", "16k", "32k")
