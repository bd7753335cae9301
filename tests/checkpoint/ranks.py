"""Ranks as threads: what each writes of a model, and how they agree."""

import threading
from concurrent.futures import ThreadPoolExecutor

from gpt2x.checkpoint import CheckpointWriter, Content


class Group:
    """A collective exchange of texts over threads; a thread that stays away fails the test instead of hanging it."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.texts = [""] * size

    def exchange(self, rank):
        def texts(text):
            self.texts[rank] = text
            self.barrier.wait()
            outcome = list(self.texts)
            self.barrier.wait()
            return outcome

        return texts

    def run(self, work):
        """What `work(rank, exchange)` returned or raised on each rank."""

        def guarded(rank):
            try:
                return work(rank, self.exchange(rank))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(guarded, range(self.size)))


def save_in_ranks(directory, tensors_of, size, **content):
    """Save on every rank: the failure of each that it knows of, or an exception."""

    def save(rank, exchange):
        writer = CheckpointWriter(rank=rank, world_size=size, exchange=exchange)
        writer.save(directory, tensors_of(rank), Content(**content), copies=False)
        return writer.wait().failure

    return Group(size).run(save)
