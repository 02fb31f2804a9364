"""Celery's beat, for a host whose clock may be set back."""

from datetime import timedelta

from celery.beat import PersistentScheduler

LEAP = timedelta(seconds=1)  # less is the clock being trimmed


class Scheduler(PersistentScheduler):
    def tick(self, *args, **options) -> float:
        """What was last done "in the future" counts as done now. Celery compares times of the host's clock, so that
        after an hour back it would send nothing for an hour, also when started again: its file remembers.

        Looked at each time, every 15 seconds at least."""
        ahead = [entry for entry in self.schedule.values() if entry.last_run_at > entry.default_now() + LEAP]
        for entry in ahead:
            entry.last_run_at = entry.default_now()
        if ahead:
            self._heap = None  # made anew
        return super().tick(*args, **options)
