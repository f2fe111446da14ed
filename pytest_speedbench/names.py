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
LOSSLESS = "lossless"
"""Stands in the place of a category in the cell that compares greedy output with and without speculation."""
CROSSOVER = "crossover"
"""Stands in the place of a category in the cell of an ISL and difficulty over all its concurrencies."""
DIFFICULTIES = ("low_entropy", "mixed", "high_entropy")
ISLS = ("1k", "2k", "8k", "16k", "32k")
PARTIAL = "+partial"
"""Ends the id of a dataset that is measured without the prompts that are placeholders."""
CONTROL = "random"
"""Stands in the place of a difficulty in cells whose prompts are random tokens: a control, not a benchmark."""
CONTROL_KINDS = ("random", "random-uniform")
PROMPT_ORDERS = ("stratified", "round-robin")
BASELINE = "baseline-"
"""Begins the label of the profile before an upgrade, measured beside the new one."""
PLAIN = "plain-"
"""Begins the label of a profile without speculation, measured beside the one with."""
