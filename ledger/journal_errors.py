"""Why a journal takes nothing.

JournalError
├── JournalLocked   another process writes this journal
├── JournalFull     no room is left, and none can be allocated; once there is, it goes on
└── JournalFailed   the disk refused a write or an fsync: nothing more is taken until a restart

CorruptJournal (records.py) stands apart: what was written is damaged.
"""


class JournalError(Exception):
    """The journal cannot take records."""


class JournalLocked(JournalError):
    """Another process holds the journal's directory."""


class JournalFull(JournalError):
    """The record does not fit and no further segment can be allocated."""


class JournalFailed(JournalError):
    """A write or an fsync failed earlier; what the disk holds behind it is unknown."""
