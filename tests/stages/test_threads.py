import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stages.threads import compute_alone, spread


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_call_has_a_thread_to_itself_and_the_caller_keeps_its_own(three_threads: None) -> None:
    together = threading.Barrier(3, timeout=60)  # passed only by three calls at a time

    def call(number: int) -> tuple[int, int]:
        together.wait()
        return number, torch.get_num_threads()

    assert spread(call, range(9)) == [(number, 1) for number in range(9)]
    assert torch.get_num_threads() == 3
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_many_that_begin_at_once_leave_what_others_begin_with(three_threads: None) -> None:
    for _ in range(100):
        with ThreadPoolExecutor(8, "alone", compute_alone) as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(16))) == {1}
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3


def test_on_one_thread_nothing_leaves_it() -> None:
    assert torch.get_num_threads() == 1
    assert set(spread(lambda _: threading.get_ident(), range(4))) == {threading.get_ident()}


def test_no_items_have_no_results(three_threads: None) -> None:
    assert spread(str, []) == []


def test_an_error_in_a_call_is_the_callers(three_threads: None) -> None:
    with pytest.raises(ZeroDivisionError):
        spread(lambda number: 1 / number, [1, 0, 1, 1])
    assert torch.get_num_threads() == 3
