"""Patterns of the ids that a server gives out."""

JOB_ID = r"[0-9a-f]{32}"
#: An artifact's, and a hosted model's in the lake.
ARTIFACT_ID = r"[0-9a-f]{16}"
