"""Patterns of the ids and names that travel, and what to say to who writes something else."""

JOB_ID = r"[0-9a-f]{32}"
#: An artifact's, and a hosted model's in the lake.
ARTIFACT_ID = r"[0-9a-f]{16}"
#: A tenant's, a tag's.
NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
#: A hosted model's repo id, or its slug.
MODEL = r"[A-Za-z0-9][A-Za-z0-9_./-]*"
#: A method's, with its version or without.
METHOD = r"[a-z0-9_]+(\.[a-z0-9_]+)*(@[0-9]{1,6})?"
REPLICA_ID = r"[A-Za-z0-9_.:#-]{1,128}"
EVENT_ID = r"[0-9]{1,19}(-[0-9]{1,19})?"
#: Where a page of a list begins.
CURSOR = r"[0-9]{1,15}-[0-9a-f]{1,64}"
IDEMPOTENCY_KEY = r"[\x21-\x7e]+"
#: What people read.
LABEL = r"[^\x00-\x1f\x7f]*"
#: A template, with a place for a word.
TEMPLATE = r"\{\}"

#: What a field takes, by its pattern.
TAKES = {
    f"^{JOB_ID}$": "32 hex digits, as `interlace jobs` shows them",
    f"^{ARTIFACT_ID}$": "16 hex digits, as `interlace lake search` shows them",
    f"^{NAME}$": "1 to 63 of a-z, 0-9, `.`, `_` and `-`, a letter or a digit first",
    f"^{MODEL}$": "a repo id or a slug, as `interlace models` shows them",
    f"^{METHOD}$": "the name of a method, as `interlace methods` shows them",
    f"^{REPLICA_ID}$": "the id of a replica, as `/status` shows them",
    f"^{EVENT_ID}$": "the id of an event, such as 1700000000000-0",
    f"^{CURSOR}$": "the `next` of the page before",
    f"^{IDEMPOTENCY_KEY}$": "printable ASCII without spaces",
    f"^{LABEL}$": "one line without control characters",
    TEMPLATE: "a text with `{}` in it",
}
