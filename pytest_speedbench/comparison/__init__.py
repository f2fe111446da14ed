"""Two stored runs compared: before and after an upgrade, or without and with speculation."""
