"""The tables of the annotation queue: tasks, what was handed in, and what is not handed in yet."""

from enum import StrEnum

import sqlalchemy as sa


class TaskState(StrEnum):
    OPEN = "open"
    LEASED = "leased"
    SUBMITTED = "submitted"
    GIVEN_UP = "given_up"
    WITHDRAWN = "withdrawn"
    """The round had its masks before anybody began it."""


class TaskKind(StrEnum):
    ANNOTATE = "annotate"
    REVIEW = "review"
    """Look again at what somebody else handed in; the round waits for it."""
    AUDIT = "audit"
    """Correct automatic masks, to learn how good they are; nothing waits for it."""


METADATA = sa.MetaData()

TASKS = sa.Table(
    "tasks",
    METADATA,
    sa.Column("task_id", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("image_id", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("token", sa.String(32), nullable=False, server_default=""),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("holder", sa.String(64), nullable=False, server_default=""),
    sa.Column("hands", sa.Integer, nullable=False, server_default="0"),
    sa.Column("expires_at", sa.Float, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("subject", sa.Integer),
    sa.Column("author", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("round", "kind", "image_id"),
    sa.Index("tasks_by_state", "round", "kind", "state", "task_id"),
)
"""`hands`: how often the task has come from one owner to another. `note`: a reviewer's, for whoever
annotates next. Of a review, `subject` is the task whose answer is looked at and `author` who gave
it."""

ANSWERS = sa.Table(
    "answers",
    METADATA,
    sa.Column("task_id", sa.Integer, primary_key=True),
    sa.Column("token", sa.String(32), primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("image_id", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("submitted_at", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("ok", sa.Integer, nullable=False, server_default="1"),
    sa.Column("masks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("clicks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("brushed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("verdict", sa.String(16), nullable=False, server_default=""),
    sa.Column("compared", sa.Integer, nullable=False, server_default="0"),
    sa.Column("deleted", sa.Integer, nullable=False, server_default="0"),
    sa.Column("added", sa.Integer, nullable=False, server_default="0"),
    sa.Column("iou_sum", sa.Float, nullable=False, server_default="0"),
    sa.Column("above_90", sa.Integer, nullable=False, server_default="0"),
    sa.Column("above_75", sa.Integer, nullable=False, server_default="0"),
    sa.Column("content", sa.Text, nullable=False),
)
"""One row for each answer and the lease it was given under, with its figures beside it: sums over
all of them must not read the content. What is to be done again is taken out; verdicts stay."""
_FIGURES = (column.name for column in ANSWERS.columns if column.name not in ("token", "content"))
sa.Index(
    "answers_by_time",
    *(ANSWERS.c[name] for name in dict.fromkeys(("round", "kind", "submitted_at", *_FIGURES))),
)
"""Holds every figure, so that sums read the index alone: in SQLite, contents part the rows."""

DRAFTS = sa.Table(
    "drafts",
    METADATA,
    sa.Column("task_id", sa.Integer, primary_key=True),
    sa.Column("draft_id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
)
"""What annotators have accepted: kept whoever holds the task next, also when it was handed in.
`size`: characters of the content, known without reading it."""
