"""Callbacks that are to be delivered: what is due, and what became of each try. Same file and thread as the jobs."""

from __future__ import annotations

from dataclasses import dataclass

from critiq_server.jobs.store import JobStore


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message to deliver. ``message`` is the same at every try, so that receivers can drop repeats."""

    job: int
    message: str
    url: str
    body: bytes
    attempts: int
    give_up: float


class Outbox:
    """The callbacks in ``store``."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._run = store.connection.execute

    def due(self, now: float, limit: int, start: int = 0) -> list[Delivery]:
        """Those that are due, longest first; ``start``: without the first so many."""
        rows = self._run(
            "SELECT job, message, url, body, attempts, give_up FROM callbacks WHERE due <= ? ORDER BY due "
            "LIMIT ? OFFSET ?",
            (now, limit, start),
        )
        return [Delivery(*row) for row in rows]

    def next_due(self, after: float = 0.0) -> float | None:
        """When the next one is due, of those due after that."""
        due: float | None = self._run("SELECT min(due) FROM callbacks WHERE due > ?", (after,)).fetchone()[0]
        return due

    def trace(self, delivery: Delivery) -> str:
        """``traceparent`` of the call that submitted the job; empty: none is known."""
        row = self._run("SELECT parent FROM traces WHERE job = ?", (delivery.job,)).fetchone()
        return "" if row is None else str(row["parent"])

    def gives_up(self, delivery: Delivery) -> float:
        """When the last try may be: as it stands now, which is another time than before if the clock was set."""
        row = self._run("SELECT give_up FROM callbacks WHERE job = ?", (delivery.job,)).fetchone()
        return delivery.give_up if row is None else float(row[0])

    def delivered(self, delivery: Delivery) -> None:
        self._settle(delivery, "delivered", "", None)

    def failed(self, delivery: Delivery, error: str, due: float | None) -> None:
        """A try failed; the next is due then, ``None``: it was the last."""
        self._settle(delivery, "pending" if due is not None else "given_up", error, due)

    def refused(self, delivery: Delivery, error: str) -> None:
        """The receiver wants no messages at this URL any more: nothing else that waits for it is sent either."""
        with self._store.transaction():
            self._settle(delivery, "refused", error, None)
            self._run(
                "UPDATE callbacks SET state = 'refused', last_error = ?, due = NULL, body = NULL "
                "WHERE url = ? AND due IS NOT NULL",
                (error, delivery.url),
            )

    def clock_set(self, now: float, step: float, give_up_seconds: float) -> None:
        """The clock went from ``now - step`` to ``now``: pauses and patience stay as long as they were."""
        if step < 0:
            # Pauses that began since are cut short by this, which is better than told apart.
            self._run("UPDATE callbacks SET due = max(?1, due + ?2) WHERE due > ?1", (now, step))
        else:
            self._run(
                "UPDATE callbacks SET give_up = give_up + ?1 WHERE due IS NOT NULL AND give_up <= ?2",
                (step, now - step + give_up_seconds),
            )

    def _settle(self, delivery: Delivery, state: str, error: str, due: float | None) -> None:
        self._run(
            # What was refused while a try was under way stays so: its body is gone.
            "UPDATE callbacks SET state = ?, last_error = ?, due = ?, attempts = attempts + 1 "
            "WHERE job = ? AND state = 'pending'",
            (state, error, due, delivery.job),
        )
