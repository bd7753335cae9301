"""Ranks as threads: what each writes of a model, and how they agree."""

import threading
from concurrent.futures import ThreadPoolExecutor

from gpt2x.checkpoint import save


class Group:
    """A collective AND over threads; a thread that stays away fails the test instead of hanging it."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.votes = [True] * size

    def agree(self, rank):
        def vote(is_well):
            self.votes[rank] = is_well
            self.barrier.wait()
            outcome = all(self.votes)
            self.barrier.wait()
            return outcome

        return vote

    def run(self, work):
        """What `work(rank, agree)` returned or raised on each rank."""

        def guarded(rank):
            try:
                return work(rank, self.agree(rank))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(guarded, range(self.size)))


def save_in_ranks(directory, tensors_of, size, **settings):
    """The outcomes of `save` on every rank: None or an exception."""
    return Group(size).run(
        lambda rank, agree: save(
            directory, tensors=tensors_of(rank), rank=rank, world_size=size, agree=agree, **settings
        )
    )
