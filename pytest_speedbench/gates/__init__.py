"""Thresholds files and verdicts."""
