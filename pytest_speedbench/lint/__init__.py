"""Reads thresholds files for what loads and yet is wrong, stale or missing."""
