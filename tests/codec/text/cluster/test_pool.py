"""codec.text.cluster.pool: on a local Ray cluster tasks are bounded, in order, and done again where an actor dies."""

import os
from contextlib import closing

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'underpar[ray]'")

from codec.errors import CodecError, FormatError, MismatchError, WorkerError  # noqa: E402
from codec.text.cluster import pool as module  # noqa: E402
from codec.text.cluster.connection import connect  # noqa: E402
from codec.text.cluster.pool import Pool, Task  # noqa: E402
from tests.codec.text.cluster.actors import Simple  # noqa: E402
from tests.support.helpers import ROOT  # noqa: E402

STORE = 80 << 20
"""Bytes of the object store: about the least that Ray takes."""


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processors on this machine, which all pools use that ask for a local one."""
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(address="local", num_cpus=2, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture
def pool(cluster):
    return Pool(Simple, "", ["cpu", "cpu"], "local")


def results(pool, tasks, advance=lambda amount: None):
    with closing(pool.in_order(iter(tasks), advance)) as answers:
        return [answer for _, answer in answers]


def test_answers_come_in_order_and_tasks_are_taken_as_they_are_needed(pool):
    taken = []

    def tasks():
        for n in range(12):
            taken.append(n)
            yield Task("double", (n, 0.2 if n % 4 == 0 else 0.0))

    told = []
    with closing(pool.in_order(tasks(), told.append)) as answers:
        for n, (task, answer) in enumerate(answers):
            assert (task.arguments[0], answer) == (n, 2 * n)
            assert len(taken) <= n + 2 * 2  # two for each actor, and the one that is given out
    assert n == 11 and set(told) == {0}
    assert results(pool, []) == []


def test_a_lost_actor_has_its_tasks_done_again(pool, tmp_path):
    tasks = [Task("double", (n,)) for n in range(6)]
    tasks[2] = Task("die_once", (str(tmp_path / "mark"), 2))
    assert results(pool, tasks) == [0, 2, 4, 6, 8, 10]
    assert (tmp_path / "mark").exists()
    assert results(pool, [Task("double", (5,))]) == [10]


def test_a_task_that_kills_all_actors_is_given_up(pool):
    with pytest.raises(WorkerError, match="4 actors of the cluster died on the same documents"):
        results(pool, [Task("double", (1,)), Task("die", ())])
    assert results(pool, [Task("double", (5,))]) == [10]


def test_errors(pool):
    with pytest.raises(FormatError, match=r"^number -1: below zero$"):
        results(pool, [Task("double", (n,)) for n in (1, -1, 2)])
    with pytest.raises(WorkerError, match="an actor of the cluster failed: TypeError"):
        results(pool, [Task("double", ("x",))])
    assert results(pool, [Task("double", (5,))]) == [10]


def test_an_interrupt_ends_what_is_under_way(pool):
    def advance(amount):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results(pool, [Task("double", (1, 30.0))], advance)
    assert results(pool, [Task("double", (5,))]) == [10]


def test_nodes_of_another_version_or_without_the_code_are_refused(cluster):
    with pytest.raises(MismatchError, match=r"a node has another underpar .*install the same version"):
        results(Pool(Simple, "another version", ["cpu", "cpu"], "local"), [Task("double", (1,))])
    with pytest.raises(CodecError, match=r"Ray's nodes cannot import underpar \(.*No module named 'codec'"):
        results(Pool(Simple, "not importable", ["cpu", "cpu"], "local"), [Task("double", (1,))])
    with pytest.raises(CodecError, match="it has no GPU"):
        results(Pool(Simple, "", ["cuda"], "local"), [Task("double", (1,))])


def test_more_than_the_object_store_holds(pool):
    """Tasks on their way are bounded; where even these are too much, Ray spills to disk, and all comes back."""
    sizes = [30 << 20] * 8
    assert sum(sizes) > 2 * STORE and 4 * sizes[0] > STORE
    tasks = (Task("length", (bytes(size),)) for size in sizes)
    assert [len(answer) for answer in results(pool, tasks)] == sizes


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_dead_address(address):
    ray.shutdown()
    with pytest.raises(CodecError, match=rf"Ray cluster '{address}': no answer \(.*refused"):
        connect(address, 1)
    for odd in ("nowhere", "host:port"):
        with pytest.raises(CodecError, match="expected HOST:PORT"):
            connect(odd, 1)


@pytest.mark.long
def test_nodes_come_and_go(monkeypatch):
    """A node that is added takes tasks; one that dies has its tasks done by the other."""
    from ray.cluster_utils import Cluster as Nodes

    ray.shutdown()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.5)
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        pool, seen, new = Pool(Simple, "", ["cpu"], "auto"), [], None
        with closing(pool.in_order((Task("where", (0.5,)) for _ in range(400)), lambda amount: None)) as answers:
            for task, node in answers:
                seen.append(node)
                if task.number == 3:
                    assert len(set(seen)) == 1
                    new = nodes.add_node(num_cpus=1)
                if new and len(set(seen)) == 2:
                    nodes.remove_node(new, allow_graceful=False)
                    new, left = None, 6
                elif len(set(seen)) == 2:
                    left -= 1
                    if not left:
                        break
        assert len(set(seen)) == 2
    finally:
        ray.shutdown()
        nodes.shutdown()
