"""A user's mistake, or something missing on this machine: one message, no traceback."""


class UserError(Exception):
    """Names the file or key, the value found, and what would be right."""
