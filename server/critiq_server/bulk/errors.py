"""What a bulk run can stop with."""

from __future__ import annotations


class BulkError(Exception):
    """The run cannot begin or go on; the message says why and what to do."""


class StorageError(BulkError):
    """A file could not be read or written just now; the same run may succeed later."""
