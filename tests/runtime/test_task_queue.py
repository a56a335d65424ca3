"""Which task a worker begins next."""

from onnxcalib.runtime.task_queue import TaskQueue


def test_tasks_that_cost_the_same_are_taken_in_their_order():
    queue = TaskQueue({key: key.upper() for key in "abcd"})
    assert [queue.take(worker, 2) for worker in (0, 1, 1, 0)] == [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]
    assert queue.take(0, 2) is None and not queue


def test_a_large_task_is_not_left_for_the_end():
    queue = TaskQueue(dict.fromkeys("abcdef"), {"a": 2, "b": 2, "c": 2, "d": 2, "e": 9, "f": 1})
    assert [queue.take(0, 4)[0], queue.take(1, 4)[0]] == ["e", "a"]


def test_a_worker_that_has_passed_all_tasks_leaves_them_to_others_that_have_not():
    queue = TaskQueue(dict.fromkeys("abcd"), {"a": 1, "b": 1, "c": 1, "d": 9})
    assert queue.take(0, 2)[0] == "d"
    assert queue.take(1, 2)[0] == "a"
    assert queue.take(0, 2)[0] == "b"  # which begins anew: two are left
    queue = TaskQueue(dict.fromkeys("abc"), {"a": 1, "b": 1, "c": 9})
    assert [queue.take(0, 2)[0], queue.take(1, 2)[0]] == ["c", "a"]
    assert queue.take(0, 2) is None and len(queue) == 1
    assert queue.take(0, 2, alone=True)[0] == "b"


def test_tasks_that_one_worker_left_out_are_left_out_by_no_other_that_would_have_to_begin_anew():
    queue = TaskQueue(dict.fromkeys("abcdef"), {"a": 1, "b": 1, "c": 1, "d": 9, "e": 5, "f": 1})
    assert [queue.take(worker, 2)[0] for worker in (0, 1, 1, 1, 0, 1)] == [*"dabcef"]
