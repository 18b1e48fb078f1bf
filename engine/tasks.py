"""The annotation queue: one task an image, claimed with a lease, answered once.

Annotators, simulated or human, are clients of the same calls. A lease is a promise with an end: who
holds a live one may renew, submit, release or fail the task; once it has expired, anybody may claim
the task anew and the old lease is refused. Submitting is idempotent: sent twice under one lease,
the first is kept. The run and its annotation server may share a queue: in SQLite on one machine, in
PostgreSQL anywhere; time comes from the clock of whoever asks.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from engine.database import open_database
from engine.errors import StaleLeaseError
from stages.records import Record, Submission


class TaskState(StrEnum):
    OPEN = "open"
    LEASED = "leased"
    SUBMITTED = "submitted"
    GIVEN_UP = "given_up"


class Lease(Record):
    token: str
    task_id: int
    round: int
    image_id: int
    owner: str
    expires_at: float
    """Seconds, of the queue's clock."""


class TaskCounts(Record):
    open: int = 0
    leased: int = 0
    submitted: int = 0
    given_up: int = 0

    @property
    def left(self) -> int:
        return self.open + self.leased


class TaskResult(Record):
    """How a task ended."""

    image_id: int
    submission: Submission | None
    """None when the task was given up."""
    error: str
    owner: str = ""
    """Who held it last."""


_MOST_VALUES = 10_000
"""In one statement; PostgreSQL takes 65,535."""

_METADATA = sa.MetaData()
_TASKS = sa.Table(
    "tasks",
    _METADATA,
    sa.Column("task_id", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("image_id", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("token", sa.String(32), nullable=False, server_default=""),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("holder", sa.String(64), nullable=False, server_default=""),
    sa.Column("expires_at", sa.Float, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("submission", sa.Text),
    sa.Column("error", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("round", "image_id"),
    sa.Index("tasks_by_state", "round", "state", "task_id"),
)
_DRAFTS = sa.Table(
    "drafts",
    _METADATA,
    sa.Column("task_id", sa.Integer, primary_key=True),
    sa.Column("draft_id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
)
"""What annotators have accepted of tasks not yet submitted: kept whoever holds the lease next."""


class Draft(Record):
    draft_id: str
    """Chosen by whoever saves it, so that saving twice is saving once."""
    owner: str
    content: str


class TaskQueue:
    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        lease_seconds: float = 600.0,
        max_attempts: int = 3,
    ) -> None:
        """
        Args:
            url: see `open_database`.
            clock: seconds since some fixed moment, shared by all who open this queue in turn.
            max_attempts: failures after which a task is given up.
        """
        self._engine = open_database(url, _METADATA)
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def close(self) -> None:
        self._engine.dispose()

    def add(self, round_index: int, image_ids: Sequence[int]) -> int:
        """Create the tasks of a round that do not exist yet; returns how many are new."""
        try:
            with self._engine.begin() as connection:
                known = set(
                    connection.scalars(
                        sa.select(_TASKS.c.image_id).where(_TASKS.c.round == round_index)
                    )
                )
                rows = [
                    {"round": round_index, "image_id": int(image_id), "state": TaskState.OPEN}
                    for image_id in image_ids
                    if image_id not in known
                ]
                if rows:
                    connection.execute(sa.insert(_TASKS), rows)
        except sa.exc.IntegrityError:  # another driver of the run adds them at the same time
            return self.add(round_index, image_ids)
        return len(rows)

    def claim(
        self,
        owner: str,
        round_index: int,
        *,
        holder: str = "",
        holding: Collection[int] | None = None,
    ) -> Lease | None:
        """The next task for this owner, under a new lease; None when there is none now.

        First comes what this holder left behind: a task that it still leases and does not name in
        `holding`. Its old lease ends at once, so nobody waits for it to expire. Then tasks whose
        leases have expired, then those that nobody ever held.

        One owner may work at several places at once, and must not take a task from under their own
        hands: what another holder leases is left alone until it expires, and without `holding` so
        is everything that is leased.

        Args:
            holder: where the owner works, such as one browser; it knows which of its pages live.
            holding: tasks that the holder's living pages work on; None: it cannot tell.
        """
        values = {
            "state": TaskState.LEASED,
            "token": uuid.uuid4().hex,
            "owner": owner,
            "holder": holder,
            "expires_at": self._clock() + self._lease_seconds,
        }
        searches = [self._free(round_index)]
        if holder and holding is not None:
            searches.insert(0, _left_behind(owner, round_index, holder, holding))
        with self._engine.begin() as connection:
            for task_id in searches:
                lease = sa.update(_TASKS).where(_TASKS.c.task_id == task_id).values(**values)
                row = connection.execute(lease.returning(_TASKS)).one_or_none()
                if row is not None:
                    return _lease(row)
        return None

    def _free(self, round_index: int) -> sa.ColumnElement[int]:
        """Id of the next task that nobody holds, as SQL."""
        now = self._clock()
        expired = (_TASKS.c.state == TaskState.LEASED) & (_TASKS.c.expires_at <= now)
        # Two look-ups in the index: one for either state would sort all that are left, every time.
        return sa.func.coalesce(
            *(
                _first(sa.and_(_TASKS.c.round == round_index, free))
                for free in (expired, _TASKS.c.state == TaskState.OPEN)
            )
        )

    def renew(self, lease: Lease) -> Lease:
        """The same lease with its full time ahead. StaleLeaseError when it is no longer held."""
        row = self._change(lease, "renew", expires_at=self._clock() + self._lease_seconds)
        return _lease(row)

    def submit(self, lease: Lease, submission: Submission) -> bool:
        """Hand in an answer.

        Returns:
            False when this lease has been submitted before: the first submission stays.

        Raises:
            StaleLeaseError: the lease expired or the task passed to somebody else.
        """
        values = {"state": TaskState.SUBMITTED, "submission": submission.model_dump_json()}
        try:
            self._change(lease, "submit", **values)
        except StaleLeaseError:
            if self._submitted_under(lease):
                return False
            raise
        return True

    def save_draft(self, lease: Lease, draft_id: str, content: str) -> None:
        """Keep a part of the answer, or replace it. StaleLeaseError when the lease is not held."""
        key = (_DRAFTS.c.task_id == lease.task_id) & (_DRAFTS.c.draft_id == draft_id)
        with self._engine.begin() as connection:
            row = self._hold(connection, lease, "save a mask of")
            replaced = sa.update(_DRAFTS).where(key).values(content=content, owner=row.owner)
            if connection.execute(replaced).rowcount:
                return
            highest = sa.select(sa.func.max(_DRAFTS.c.number)).where(
                _DRAFTS.c.task_id == lease.task_id
            )
            connection.execute(
                sa.insert(_DRAFTS).values(
                    task_id=lease.task_id,
                    draft_id=draft_id,
                    number=(connection.scalar(highest) or 0) + 1,
                    owner=row.owner,
                    content=content,
                )
            )

    def delete_draft(self, lease: Lease, draft_id: str) -> None:
        """Fine when it is gone already. StaleLeaseError when the lease is not held."""
        key = (_DRAFTS.c.task_id == lease.task_id) & (_DRAFTS.c.draft_id == draft_id)
        with self._engine.begin() as connection:
            self._hold(connection, lease, "delete a mask of")
            connection.execute(sa.delete(_DRAFTS).where(key))

    def drafts(self, task_id: int) -> list[Draft]:
        """In the order in which they were first saved."""
        query = sa.select(_DRAFTS).where(_DRAFTS.c.task_id == task_id).order_by(_DRAFTS.c.number)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Draft(draft_id=row.draft_id, owner=row.owner, content=row.content) for row in rows]

    def lease_of(self, task_id: int, token: str) -> Lease:
        """The lease that a token stands for, live or not. StaleLeaseError for a foreign token."""
        query = sa.select(_TASKS).where(_TASKS.c.task_id == task_id, _TASKS.c.token == token)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none() if token else None
        if row is None:
            raise StaleLeaseError(
                f"task {task_id} is not, or no longer, yours: claim a task again; what you saved "
                "of it is kept"
            )
        return _lease(row)

    def release(self, lease: Lease) -> None:
        """Put the task back unanswered; nobody is to blame."""
        self._change(lease, "release", state=TaskState.OPEN)

    def take_back(self, owner: str, round_index: int) -> int:
        """Put back what an owner still holds, for one that starts anew; returns how many tasks."""
        held = (
            (_TASKS.c.round == round_index)
            & (_TASKS.c.owner == owner)
            & (_TASKS.c.state == TaskState.LEASED)
        )
        release = sa.update(_TASKS).where(held).values(state=TaskState.OPEN)
        with self._engine.begin() as connection:
            return int(connection.execute(release).rowcount)

    def fail(self, lease: Lease, error: str) -> bool:
        """Put the task back after a failure; the last of `max_attempts` failures gives it up.

        Returns:
            Whether it was given up.
        """
        attempts = _TASKS.c.attempts + 1
        state = sa.case(
            (attempts >= self._max_attempts, TaskState.GIVEN_UP.value), else_=TaskState.OPEN.value
        )
        row = self._change(lease, "fail", attempts=attempts, state=state, error=error)
        return bool(row.state == TaskState.GIVEN_UP)

    def counts(self, round_index: int) -> TaskCounts:
        query = (
            sa.select(_TASKS.c.state, sa.func.count())
            .where(_TASKS.c.round == round_index)
            .group_by(_TASKS.c.state)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return TaskCounts(**{row[0]: row[1] for row in rows})

    def results(self, round_index: int, image_ids: Sequence[int]) -> dict[int, TaskResult]:
        """Of those of these images whose tasks have ended."""
        ended = _TASKS.c.state.in_((TaskState.SUBMITTED, TaskState.GIVEN_UP))
        query = sa.select(
            _TASKS.c.image_id, _TASKS.c.submission, _TASKS.c.owner, _TASKS.c.error
        ).where(_TASKS.c.round == round_index, ended)
        ids = [int(image_id) for image_id in image_ids]
        with self._engine.connect() as connection:
            rows = [
                row
                for first in range(0, len(ids), _MOST_VALUES)
                for row in connection.execute(
                    query.where(_TASKS.c.image_id.in_(ids[first : first + _MOST_VALUES]))
                )
            ]
        return {
            row.image_id: TaskResult(
                image_id=row.image_id,
                submission=row.submission and Submission.model_validate_json(row.submission),
                owner=row.owner,
                error=row.error,
            )
            for row in rows
        }

    def _change(self, lease: Lease, action: str, **values: Any) -> Any:
        """Update the task if the lease is live; one statement, so nobody comes between."""
        with self._engine.begin() as connection:
            return self._hold(connection, lease, action, **values)

    def _hold(self, connection: sa.Connection, lease: Lease, action: str, **values: Any) -> Any:
        """The task's row, changed; locked against others until the transaction ends."""
        held = (
            (_TASKS.c.task_id == lease.task_id)
            & (_TASKS.c.token == lease.token)
            & (_TASKS.c.state == TaskState.LEASED)
            & (_TASKS.c.expires_at > self._clock())
        )
        values = values or {"token": lease.token}
        change = sa.update(_TASKS).where(held).values(**values).returning(_TASKS)
        row = connection.execute(change).one_or_none()
        if row is None:
            raise StaleLeaseError(
                f"cannot {action} image {lease.image_id} of round {lease.round}: the lease of "
                f"{lease.owner} has expired or the task has passed on; claim a task again"
            )
        return row

    def _submitted_under(self, lease: Lease) -> bool:
        query = sa.select(_TASKS.c.task_id).where(
            _TASKS.c.task_id == lease.task_id,
            _TASKS.c.token == lease.token,
            _TASKS.c.state == TaskState.SUBMITTED,
        )
        with self._engine.connect() as connection:
            return connection.execute(query).one_or_none() is not None


def _left_behind(
    owner: str, round_index: int, holder: str, holding: Collection[int]
) -> sa.ScalarSelect[int]:
    """Id of the first task that a holder leases and none of its living pages works on, as SQL."""
    return _first(
        sa.and_(
            _TASKS.c.round == round_index,
            _TASKS.c.state == TaskState.LEASED,
            _TASKS.c.owner == owner,
            _TASKS.c.holder == holder,
            _TASKS.c.task_id.not_in(list(holding)),
        )
    )


def _first(condition: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return (
        sa.select(_TASKS.c.task_id)
        .where(condition)
        .order_by(_TASKS.c.task_id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time
        .scalar_subquery()
    )


def _lease(row: Any) -> Lease:
    return Lease(
        token=row.token,
        task_id=row.task_id,
        round=row.round,
        image_id=row.image_id,
        owner=row.owner,
        expires_at=row.expires_at,
    )
