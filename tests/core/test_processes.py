"""Work in several processes: one that dies, at any moment, is one error; nothing is left running."""

import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch

from spikeport.core import SpikeportError
from spikeport.core.processes import in_processes

#: More than any pipe holds.
LARGE = 1 << 24


class FatalToRead:
    """Ends the process that unpickles it before the rest of the message has been read."""

    def __reduce__(self):
        return os._exit, (3,)


def large(item):
    return bytes(LARGE)


def square(offset, item):
    return item * item + offset


def fail(item):
    return 1 // item


def refuse(item):
    raise SpikeportError(f"{item} is refused")


def threads(item):
    return torch.get_num_threads()


def pid(item):
    return os.getpid()


def die(item):
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_item_once_and_nothing_left():
    assert sorted(in_processes(partial(square, 1), range(7), 2, "died")) == [n * n + 1 for n in range(7)]
    assert multiprocessing.active_children() == []


def test_one_process_is_this_one():
    assert set(in_processes(pid, range(3), 1, "died")) == {os.getpid()}


def test_no_more_processes_than_items():
    assert len(set(in_processes(pid, range(2), 8, "died"))) == 2
    assert list(in_processes(pid, [], 8, "died")) == []


def test_each_has_its_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert list(in_processes(threads, [0], 2, "died")) == [2]


def test_an_error_is_raised_here_with_its_place_there():
    with pytest.raises(ZeroDivisionError) as caught:
        list(in_processes(fail, [0], 2, "died"))
    assert "in fail" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


def test_a_clear_error_stays_clear():
    with pytest.raises(SpikeportError, match="^7 is refused$") as caught:
        list(in_processes(refuse, [7], 2, "died"))
    assert not hasattr(caught.value, "__notes__")


def test_death_at_work():
    with pytest.raises(SpikeportError, match="^died$"):
        list(in_processes(die, [0], 2, "died"))
    assert multiprocessing.active_children() == []


def test_death_while_the_work_is_sent():
    with pytest.raises(SpikeportError, match="^died$"):
        list(in_processes(partial(square, (FatalToRead(), bytes(LARGE))), [0], 2, "died"))


def test_death_while_an_item_is_sent():
    with pytest.raises(SpikeportError, match="^died$"):
        list(in_processes(large, [(FatalToRead(), bytes(LARGE))], 2, "died"))


def test_death_while_a_result_is_sent():
    """The other result does not fit into its pipe, so its process dies in the middle of it."""
    results = in_processes(large, range(2), 2, "died")
    assert len(next(results)) == LARGE
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(SpikeportError, match="^died$"):
        list(results)


def test_left_early_they_end():
    results = in_processes(pid, range(100), 2, "died")
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert multiprocessing.active_children() == []
