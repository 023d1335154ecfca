"""Where versions, counts and flags lie: 64-bit words in the control window of a server."""


class ControlWords:
    """Positions of the words."""

    # At the coordinator.
    PUBLISHED = 0  # newest version that all shards have published
    CURSOR = 1  # number of the next batch to be drawn
    STOP = 2  # 1: workers draw and push nothing more
    # At every server.
    WRITING = 3  # version that is being written, or has been written, to this server's buffers
    # At the coordinator, where workers may die.
    EXHAUSTED = 4  # 1: no batch is left to do for anybody, workers finish
    ENDED = 5  # the exit code of the job and 1, once everything is saved
    _FIRST_WORKER = 8
    _PER_WORKER = 9

    @classmethod
    def announced(cls, worker: int) -> int:
        """At the coordinator: pushes of the worker that are complete at all servers; written by the worker."""
        return cls._FIRST_WORKER + worker * cls._PER_WORKER

    @classmethod
    def consumed(cls, worker: int) -> int:
        """At every server: pushes of the worker whose slot may be used again."""
        return cls.announced(worker) + 1

    @classmethod
    def settled(cls, worker: int) -> int:
        """At the coordinator: pushes of the worker that are part of the published version, or dropped."""
        return cls.announced(worker) + 2

    @classmethod
    def finished(cls, worker: int) -> int:
        """At the coordinator: 1 once the worker pushes nothing more; written by the worker."""
        return cls.announced(worker) + 3

    @classmethod
    def handled(cls, worker: int) -> int:
        """At the coordinator: pushes of the worker that are accumulated, and an update that they complete published."""
        return cls.announced(worker) + 4

    @classmethod
    def rests(cls, worker: int) -> int:
        """At the coordinator: how often the worker has found no more batches; written by the worker."""
        return cls.announced(worker) + 5

    @classmethod
    def offers(cls, worker: int) -> int:
        """At the coordinator: batches of dead workers that have been offered to the worker."""
        return cls.announced(worker) + 6

    @classmethod
    def offered_ticket(cls, worker: int) -> int:
        """At the coordinator: the last batch that was offered."""
        return cls.announced(worker) + 7

    @classmethod
    def begun(cls, worker: int) -> int:
        """At a server on another host: the last push that the worker has begun to write; written by the worker."""
        return cls.announced(worker) + 8

    @classmethod
    def all_begun(cls, num_workers: int) -> slice:
        """`begun` of each worker."""
        return slice(cls.begun(0), cls.announced(num_workers), cls._PER_WORKER)

    @classmethod
    def of_workers(cls, num_workers: int) -> slice:
        """All words of all workers."""
        return slice(cls.announced(0), cls.announced(num_workers))

    @classmethod
    def applied(cls, num_workers: int, server: int) -> int:
        """At the coordinator: the newest version that a server's shard has; written by the server."""
        return cls.announced(num_workers) + server

    @classmethod
    def count(cls, num_workers: int, num_servers: int) -> int:
        """Words of a control window."""
        return cls.applied(num_workers, num_servers)
