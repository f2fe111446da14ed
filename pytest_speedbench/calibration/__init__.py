"""From measure-only artifacts to a thresholds file: references, noise, limits, and what they can detect."""
