"""Sending the load and collecting samples: streaming client and closed-loop driver."""
