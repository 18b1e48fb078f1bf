"""The annotation queue: one task an image, claimed with a lease, answered once.

Annotators, simulated or human, are clients of the same calls. A lease is a promise with an end: who
holds one may renew, submit, release or fail the task; once it has expired anybody may claim the
task anew, and from then on the old lease is refused. Until somebody does it holds, so a computer
that slept for an hour costs nobody their work. Submitting is idempotent: sent twice under one
lease, the first is kept. Reviewers are clients too: looking again at what was handed in is a task
of another kind, which begins with a copy of the masks. The run and its annotation server may share
a queue: in SQLite on one machine, in PostgreSQL anywhere; time comes from the clock of whoever
asks.
"""

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa

from engine.answers import open_review, send_back, store_answer
from engine.database import open_database
from engine.drafts import Draft, add_drafts, drafts_of, put_draft, remove_draft
from engine.errors import StaleLeaseError
from engine.task_queries import expired, free_task, left_behind, not_by, of_kind
from engine.task_tables import DRAFTS, METADATA, TASKS, TaskKind, TaskState
from stages.records import Record, Review, Submission

Answer = TypeVar("Answer", Submission, Review)


class Lease(Record):
    token: str
    task_id: int
    round: int
    kind: TaskKind = TaskKind.ANNOTATE
    image_id: int
    owner: str
    expires_at: float
    """Seconds, of the queue's clock."""
    hands: int
    """The same for two leases of an owner if nobody else has had the task between them."""
    note: str = ""
    """Of the reviewer who sent the image back."""
    subject: int | None = None
    """Of a review: the task whose answer is looked at."""


class TaskCounts(Record):
    open: int = 0
    leased: int = 0
    submitted: int = 0
    given_up: int = 0
    withdrawn: int = 0

    @property
    def left(self) -> int:
        return self.open + self.leased


class TaskQueue:
    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        lease_seconds: float = 600.0,
        max_attempts: int = 3,
        run_id: str | None = None,
    ) -> None:
        """
        Args:
            url, run_id: see `open_database`.
            clock: seconds since some fixed moment, shared by all who open this queue in turn.
            max_attempts: failures after which a task is given up.
        """
        self._engine = open_database(url, METADATA, run_id=run_id)
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def close(self) -> None:
        self._engine.dispose()

    def add(
        self, round_index: int, image_ids: Sequence[int], kind: TaskKind = TaskKind.ANNOTATE
    ) -> int:
        """Create the tasks of a round that do not exist yet; returns how many are new."""
        known_ids = sa.select(TASKS.c.image_id).where(of_kind(round_index, kind))
        try:
            with self._engine.begin() as connection:
                known = set(connection.scalars(known_ids))
                rows = [
                    _new_task(round_index, kind, int(image_id))
                    for image_id in image_ids
                    if image_id not in known
                ]
                if rows:
                    connection.execute(sa.insert(TASKS), rows)
        except sa.exc.IntegrityError:  # another driver of the run adds them at the same time
            return self.add(round_index, image_ids, kind)
        return len(rows)

    def add_audit(self, round_index: int, image_id: int, drafts: Sequence[Draft]) -> bool:
        """Create the task of looking at these masks of an image. False when it exists."""
        new = _new_task(round_index, TaskKind.AUDIT, image_id)
        try:
            with self._engine.begin() as connection:
                task_id = connection.scalar(sa.insert(TASKS).returning(TASKS.c.task_id), new)
                assert task_id is not None
                add_drafts(connection, task_id, drafts)
        except sa.exc.IntegrityError:
            return False
        return True

    def claim(
        self,
        owner: str,
        round_index: int,
        kind: TaskKind = TaskKind.ANNOTATE,
        *,
        holder: str = "",
        holding: Collection[int] | None = None,
    ) -> Lease | None:
        """The next task for this owner, under a new lease; None when there is none now.

        First comes what this holder left behind: a task that it still leases and does not name in
        `holding`. Its old lease ends at once, so nobody waits for it to expire. Then tasks whose
        leases have expired, then those that nobody ever held.

        Nobody is given a review of an image in which they had a hand.

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
            "hands": TASKS.c.hands + sa.case((TASKS.c.owner == owner, 0), else_=1),
            "holder": holder,
            "expires_at": self._clock() + self._lease_seconds,
        }
        mine = of_kind(round_index, kind)
        if kind is TaskKind.REVIEW:
            mine &= not_by(owner)
        if holder and holding:  # its own page may renew what has expired while it slept
            mine &= TASKS.c.task_id.not_in(list(holding))
        searches = [free_task(mine, self._clock())]
        if holder and holding is not None:
            searches.insert(0, left_behind(mine, owner, holder, holding))
        with self._engine.begin() as connection:
            for task_id in searches:
                lease = sa.update(TASKS).where(TASKS.c.task_id == task_id).values(**values)
                row = connection.execute(lease.returning(TASKS)).one_or_none()
                if row is not None:
                    return _lease(row)
        return None

    def renew(self, lease: Lease) -> Lease:
        """The same lease with its full time ahead. StaleLeaseError when it is no longer held."""
        row = self._change(lease, "renew", expires_at=self._clock() + self._lease_seconds)
        return _lease(row)

    def submit(self, lease: Lease, submission: Submission, *, review: bool = False) -> bool:
        """Hand in an answer.

        Args:
            review: somebody else is to look at it; their task begins with a copy of its masks.

        Returns:
            False when this lease has been submitted before: the first submission stays.

        Raises:
            StaleLeaseError: the task passed to somebody else, or back to the queue.
        """
        return self.submit_saved(lease, lambda _: submission, review=review)

    def submit_saved(
        self,
        lease: Lease,
        answer: Callable[[list[Draft]], Submission],
        *,
        review: bool = False,
    ) -> bool:
        """Hand in what is made of the drafts: no draft is saved between its making and the end.

        Args, returns and raises as `submit`.
        """
        return self._answer(lease, answer, open_review if review else None)

    def settle(self, lease: Lease, review: Callable[[list[Draft]], Review]) -> bool:
        """Hand in a review or an audit; what is to be done again is open again at once.

        Made of the drafts as in `submit_saved`; returns and raises as `submit`.
        """
        return self._answer(lease, review, send_back)

    def _answer(
        self,
        lease: Lease,
        make: Callable[[list[Draft]], Answer],
        follows: Callable[[sa.Connection, Any, Answer], None] | None,
    ) -> bool:
        try:
            with self._engine.begin() as connection:
                row = self._hold(connection, lease, "submit", state=TaskState.SUBMITTED)
                answer = make(drafts_of(connection, lease.task_id))
                store_answer(connection, row, answer, self._clock())
                if follows is not None:
                    follows(connection, row, answer)
        except StaleLeaseError:
            if self._submitted_under(lease):
                return False
            raise
        return True

    def save_draft(self, lease: Lease, draft_id: str, content: str) -> None:
        """Keep a part of the answer, or replace it.

        Raises:
            StaleLeaseError: the lease is not held.
            TooLargeError: the task has as many drafts as there may be.
        """
        with self._engine.begin() as connection:
            row = self._hold(connection, lease, "save a mask of")
            put_draft(connection, row, draft_id, content)

    def delete_draft(self, lease: Lease, draft_id: str) -> None:
        """Fine when it is gone already. StaleLeaseError when the lease is not held."""
        with self._engine.begin() as connection:
            self._hold(connection, lease, "delete a mask of")
            remove_draft(connection, lease.task_id, draft_id)

    def drafts(self, task_id: int) -> list[Draft]:
        """In the order in which they were first saved."""
        with self._engine.connect() as connection:
            return drafts_of(connection, task_id)

    def lease_of(self, task_id: int, token: str) -> Lease:
        """The lease that a token stands for, live or not. StaleLeaseError for a foreign token."""
        query = sa.select(TASKS).where(TASKS.c.task_id == task_id, TASKS.c.token == token)
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

    def withdraw(self, round_index: int, reason: str) -> int:
        """End the tasks that nobody has begun: not held, no mask saved, not sent back by reviewers.

        Returns:
            How many there were.
        """
        begun = sa.exists().where(DRAFTS.c.task_id == TASKS.c.task_id) | (TASKS.c.note != "")
        withdraw = (
            sa.update(TASKS)
            .where(of_kind(round_index, TaskKind.ANNOTATE))
            .where((TASKS.c.state == TaskState.OPEN) | expired(self._clock()), ~begun)
            .values(state=TaskState.WITHDRAWN, token="", error=reason)
        )
        with self._engine.begin() as connection:
            return int(connection.execute(withdraw).rowcount)

    def take_back(self, owner: str, round_index: int) -> int:
        """Put back what an owner still holds, for one that starts anew; returns how many tasks."""
        held = (
            (TASKS.c.round == round_index)
            & (TASKS.c.owner == owner)
            & (TASKS.c.state == TaskState.LEASED)
        )
        release = sa.update(TASKS).where(held).values(state=TaskState.OPEN)
        with self._engine.begin() as connection:
            return int(connection.execute(release).rowcount)

    def fail(self, lease: Lease, error: str) -> bool:
        """Put the task back after a failure; the last of `max_attempts` failures gives it up.

        Returns:
            Whether it was given up.
        """
        attempts = TASKS.c.attempts + 1
        state = sa.case(
            (attempts >= self._max_attempts, TaskState.GIVEN_UP.value), else_=TaskState.OPEN.value
        )
        row = self._change(lease, "fail", attempts=attempts, state=state, error=error)
        return bool(row.state == TaskState.GIVEN_UP)

    def reopen(self, round_index: int, image_ids: Collection[int]) -> int:
        """Give tasks of images that were given up all their attempts anew; returns how many."""
        given_up = (
            of_kind(round_index, TaskKind.ANNOTATE)
            & (TASKS.c.state == TaskState.GIVEN_UP)
            & TASKS.c.image_id.in_(image_ids)
        )
        anew = sa.update(TASKS).where(given_up).values(state=TaskState.OPEN, attempts=0, error="")
        with self._engine.begin() as connection:
            return int(connection.execute(anew).rowcount)

    def counts(self, round_index: int, kind: TaskKind = TaskKind.ANNOTATE) -> TaskCounts:
        return self.all_counts(round_index)[kind]

    def all_counts(self, round_index: int) -> dict[TaskKind, TaskCounts]:
        """Of one moment."""
        query = (
            sa.select(TASKS.c.kind, TASKS.c.state, sa.func.count())
            .where(TASKS.c.round == round_index)
            .group_by(TASKS.c.kind, TASKS.c.state)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {
            kind: TaskCounts(**{state: count for name, state, count in rows if name == kind})
            for kind in TaskKind
        }

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """For whoever has questions of their own."""
        with self._engine.connect() as connection:
            yield connection

    def _change(self, lease: Lease, action: str, **values: Any) -> Any:
        """Update the task if the lease is held; one statement, so nobody comes between."""
        with self._engine.begin() as connection:
            return self._hold(connection, lease, action, **values)

    def _hold(self, connection: sa.Connection, lease: Lease, action: str, **values: Any) -> Any:
        """The task's row, changed; locked against others until the transaction ends."""
        held = (
            (TASKS.c.task_id == lease.task_id)
            & (TASKS.c.token == lease.token)
            & (TASKS.c.state == TaskState.LEASED)
        )
        values = values or {"token": lease.token}
        change = sa.update(TASKS).where(held).values(**values).returning(TASKS)
        row = connection.execute(change).one_or_none()
        if row is None:
            raise StaleLeaseError(
                f"cannot {action} image {lease.image_id} of round {lease.round}: the lease of "
                f"{lease.owner} is over, the task has passed on; claim a task again"
            )
        return row

    def _submitted_under(self, lease: Lease) -> bool:
        query = sa.select(TASKS.c.task_id).where(
            TASKS.c.task_id == lease.task_id,
            TASKS.c.token == lease.token,
            TASKS.c.state == TaskState.SUBMITTED,
        )
        with self._engine.connect() as connection:
            return connection.execute(query).one_or_none() is not None


def _new_task(round_index: int, kind: TaskKind, image_id: int) -> dict[str, Any]:
    return {"round": round_index, "kind": kind, "image_id": image_id, "state": TaskState.OPEN}


def _lease(row: Any) -> Lease:
    return Lease(
        token=row.token,
        task_id=row.task_id,
        round=row.round,
        kind=row.kind,
        image_id=row.image_id,
        owner=row.owner,
        expires_at=row.expires_at,
        hands=row.hands,
        note=row.note,
        subject=row.subject,
    )
