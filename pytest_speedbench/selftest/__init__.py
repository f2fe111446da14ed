"""Injects known regressions into recorded runs, to see which gates notice."""
