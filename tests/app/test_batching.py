"""Items of many threads are worked on together, each gets its own result, and no more wait than may."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from bita.app.batching import Batcher, Closed, QueueFull


class Work:
    """Doubles numbers; remembers its batches; waits for `gate` before each."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.started = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, numbers: list[int]) -> list[int]:
        self.started.release()
        self.gate.acquire()
        self.batches.append(numbers)
        return [2 * number for number in numbers]

    def open(self) -> None:
        self.gate.release(10_000)


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.open()


def test_what_comes_while_a_batch_is_under_way_is_the_next_one(work: Work) -> None:
    with Batcher(work, size=4, wait=0.0) as batcher:
        first = batcher.submit(1)
        work.started.acquire()
        others = [batcher.submit(number) for number in range(2, 8)]
        assert len(batcher) == 6
        work.open()
        assert [future.result() for future in [first, *others]] == [2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_the_first_waits_until_the_batch_is_full(work: Work) -> None:
    work.open()
    with Batcher(work, size=3, wait=3600.0) as batcher:
        futures = [batcher.submit(number) for number in (1, 2, 3)]
        assert [future.result() for future in futures] == [2, 4, 6]
    assert work.batches == [[1, 2, 3]]


def test_one_that_waits_in_vain_goes_alone(work: Work) -> None:
    work.open()
    with Batcher(work, size=3, wait=0.01) as batcher:
        assert batcher.submit(1).result() == 2


def test_more_than_may_wait_are_refused(work: Work) -> None:
    with Batcher(work, size=2, wait=0.0, limit=3) as batcher:
        first = batcher.submit(0)
        work.started.acquire()
        waiting = [batcher.submit(number) for number in (1, 2, 3)]
        with pytest.raises(QueueFull):
            batcher.submit(4)
        work.open()
        assert [future.result() for future in [first, *waiting]] == [0, 2, 4, 6]
        assert batcher.submit(5).result() == 10


def test_a_bad_item_fails_alone() -> None:
    def work(numbers: list[int]) -> list[float]:
        return [1 / number for number in numbers]

    with Batcher(work, size=4, wait=3600.0) as batcher:
        futures = [batcher.submit(number) for number in (1, 0, 2, 4)]
        assert [futures[place].result() for place in (0, 2, 3)] == [1.0, 0.5, 0.25]
        assert isinstance(futures[1].exception(), ZeroDivisionError)


def test_too_few_results_are_an_error() -> None:
    with Batcher(lambda numbers: numbers[1:], size=1) as batcher:
        assert isinstance(batcher.submit(1).exception(), ValueError)
        assert isinstance(batcher.submit(2).exception(), ValueError)  # and it goes on


def test_who_went_away_costs_nothing(work: Work) -> None:
    with Batcher(work, size=4, wait=0.0) as batcher:
        first = batcher.submit(1)
        work.started.acquire()
        gone, stayed = batcher.submit(2), batcher.submit(3)
        assert gone.cancel()
        work.open()
        assert (first.result(), stayed.result()) == (2, 6)
        with pytest.raises(CancelledError):
            gone.result()
    assert work.batches == [[1], [3]]


def test_close_ends_what_waits(work: Work) -> None:
    batcher = Batcher(work, size=1, wait=0.0)
    first = batcher.submit(1)
    work.started.acquire()
    waiting = batcher.submit(2)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with contextlib.suppress(Closed):
        while True:
            with contextlib.suppress(QueueFull):
                batcher.submit(3).cancel()
    work.open()
    closing.join()
    assert first.result() == 2
    assert isinstance(waiting.exception(), Closed)
    assert work.batches == [[1]]


def test_each_of_many_threads_gets_its_own() -> None:
    sizes: list[int] = []

    def work(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        return [number * number for number in numbers]

    with Batcher(work, size=16, wait=0.001, limit=1000) as batcher, ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda number: batcher.submit(number).result(), range(1000)))
    assert found == [number * number for number in range(1000)]
    assert sum(sizes) == 1000
    assert max(sizes) <= 16
