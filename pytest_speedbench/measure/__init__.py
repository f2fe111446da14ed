"""From samples to numbers: pure functions, no I/O, no clock."""
