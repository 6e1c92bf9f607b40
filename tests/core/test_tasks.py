"""Tasks are computed once, in any number of processes, and their results come in order."""

import dataclasses
import json
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
import workers
from machine import DEVICES

from pathorob_jax.core import cost, devices, hosts, task_files, tasks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.task_files import TaskFiles

N = 7
# Each process says which tasks it computed and what it got in all.
WORKER = """
import json, sys, time
import jax
from pathorob_jax.core import devices, hosts, tasks
from pathorob_jax.core.task_files import TaskFiles

port, number, folder, case = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(f"localhost:{port}", 2, number)
asked = []
kept = TaskFiles(folder, "square", "print")
hold = (lambda i: None) if case == "no locks" else kept.hold

def compute(i, tell):
    asked.append(i)
    if case == "fails" and number == 1:
        raise ValueError("process 1 is bad")
    time.sleep(0.3)
    return {"task": i, "square": int(jax.numpy.square(i))}

work = tasks.Tasks(
    "squares", 7, compute, 1, "square",
    lambda i: kept.read_json(i, key="v", check=lambda value: None),
    lambda i, value: kept.write_json(i, value, key="v"),
    hold,
)
with hosts.together("start"):
    pass
found = tasks.run_tasks(work, mesh=devices.local_mesh())
print(json.dumps({"asked": sorted(asked), "found": found}))
"""


def squares(compute, kept, n_steps=1):
    return tasks.Tasks(
        name="squares",
        n_tasks=N,
        compute=compute,
        n_steps=n_steps,
        unit="step",
        read=kept.get,
        write=kept.__setitem__,
    )


@pytest.mark.parametrize("n_devices", [1, 3, DEVICES])
def test_results_come_in_order_from_any_number_of_devices(n_devices):
    mesh = devices.make_mesh(jax.devices()[:n_devices])
    used, kept = set(), {3: "kept"}

    def compute(i, tell):
        used.add(jax.numpy.zeros(()).devices().pop())
        return i * i

    with cost.measured(mesh) as took:
        found = tasks.run_tasks(squares(compute, kept), mesh=mesh)
    assert found == [0, 1, 4, "kept", 16, 25, 36]
    assert took["is_whole"] is False
    with cost.measured(mesh) as took:
        tasks.run_tasks(squares(compute, {}), mesh=mesh)
    assert took["is_whole"] is True
    assert kept[6] == 36
    assert used <= set(mesh.devices.flat)


@pytest.mark.parametrize(("n_cores", "at_once"), [(1, 1), (2, 2), (64, 3)])
def test_tasks_that_leave_cores_idle_share_a_device(monkeypatch, n_cores, at_once):
    monkeypatch.setattr(hosts, "n_cores", lambda: n_cores)
    together = threading.Barrier(at_once)

    def compute(i, tell):
        if i < N - N % at_once:  # the last ones may be alone
            together.wait(timeout=60)
        return i

    work = dataclasses.replace(squares(compute, {}), per_cpu=3)
    mesh = devices.make_mesh(jax.devices()[:1])
    assert tasks.run_tasks(work, mesh=mesh) == list(range(N))


@pytest.mark.parametrize("n_devices", [1, 3])
def test_what_was_done_before_an_error_is_kept(n_devices):
    mesh = devices.make_mesh(jax.devices()[:n_devices])
    asked, kept = [], {}

    def compute(i, tell):
        asked.append(i)
        if i == 4 and len(kept) < N - 1:
            raise InputError("task 4 is bad.")
        return i

    work = squares(compute, kept)
    with pytest.raises(InputError, match="task 4 is bad"):
        tasks.run_tasks(work, mesh=mesh)
    assert set(range(4)) <= set(kept) < set(range(N))
    done = set(kept)
    asked.clear()
    kept.update({i: i for i in range(N) if i != 4})
    assert tasks.run_tasks(work, mesh=mesh) == list(range(N))
    assert asked == [4]
    assert 4 not in done


def test_steps_told_and_not_told_are_those_of_the_tasks(monkeypatch):
    seen = []
    monkeypatch.setattr(tasks.Progress, "update", lambda self, n: seen.append(n))

    def compute(i, tell):
        for _ in range(i % 3):
            tell(2)
        return i

    mesh = devices.make_mesh(jax.devices()[:3])
    tasks.run_tasks(squares(compute, {0: "kept"}, 5), mesh=mesh)
    assert sum(seen) == 5 * (N - 1)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("case", ["locks", pytest.param("no locks", marks=pytest.mark.campaign)])
def test_processes_share_the_tasks_and_read_each_others(tmp_path, case):
    lines = [words.splitlines() for words in run_two(tmp_path, case, codes=[0, 0])]
    first, second = (json.loads(next(x for x in own if x.startswith("{"))) for own in lines)
    expected = [{"task": i, "square": i * i} for i in range(N)]
    assert first["found"] == second["found"] == expected
    # They begin at different tasks, so that each does some, with locks or without.
    assert 0 in first["asked"]
    assert 3 in second["asked"]
    if case == "locks":
        assert sorted(first["asked"] + second["asked"]) == list(range(N)), "each was computed once"
    else:
        assert len(first["asked"] + second["asked"]) < 2 * N


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_tasks_of_a_process_that_fails_are_done_by_the_other(tmp_path):
    first, second = run_two(tmp_path, "fails", codes=[0, 1])
    assert f'"asked": {list(range(N))}' in first
    assert "process 1 is bad" in second


def run_two(tmp_path, case, *, codes):
    folder = tmp_path / "work"
    folder.mkdir()
    port = workers.free_port()
    run = workers.Workers(WORKER, [(port, i, folder, case) for i in range(2)], tmp_path)
    return run.finish(codes, within_s=120)


def test_a_process_of_several_without_a_folder_does_all(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    mesh = devices.make_mesh(jax.devices()[:1])
    asked = []
    work = squares(lambda i, tell: asked.append(i) or i, {})
    assert tasks.run_tasks(work, mesh=mesh) == list(range(N))
    assert asked == [3, 4, 5, 6, 0, 1, 2]


def kept_squares(folder, asked, meanwhile=lambda i: None):
    """Squares whose results are files, and whose tasks are held."""
    kept = TaskFiles(str(folder), "square", "print")

    def compute(i, tell):
        asked.append(i)
        meanwhile(i)
        return i * i

    return tasks.Tasks(
        "squares",
        N,
        compute,
        1,
        "square",
        lambda i: kept.read_json(i, key="v", check=lambda value: None),
        lambda i, value: kept.write_json(i, value, key="v"),
        kept.hold,
        kept.drop_abandoned,
    )


def test_two_runs_over_one_folder_share_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "LOOK_EVERY_S", 0.01)
    mesh = devices.make_mesh(jax.devices()[:1])
    asked = ([], [])
    both = threading.Barrier(2)

    def run(own):
        # Both compute their first task at the same time, so neither can do all of them.
        meet = iter([both.wait])
        work = kept_squares(tmp_path, own, lambda i: next(meet, lambda: None)())
        return tasks.run_tasks(work, mesh=mesh)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, asked))
    assert found == [[i * i for i in range(N)]] * 2
    assert sorted(asked[0] + asked[1]) == list(range(N)), "each was computed once"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json"] * N


def test_a_killed_run_holds_nothing_and_its_locks_go(tmp_path):
    mesh = devices.make_mesh(jax.devices()[:1])
    for number in (0, 3):  # one of a task that was written, one of a task that was not
        (tmp_path / f".square_{number:04d}.lock").write_text("process 1 on a")
    kept_squares(tmp_path, []).write(0, 0)
    asked = []
    found = tasks.run_tasks(kept_squares(tmp_path, asked), mesh=mesh)
    assert found == [i * i for i in range(N)]
    assert asked == list(range(1, N))
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_task_that_another_run_gives_up_is_taken_over(tmp_path, monkeypatch):
    mesh = devices.make_mesh(jax.devices()[:1])
    held = kept_squares(tmp_path, []).hold(2)
    monkeypatch.setattr(tasks.time, "sleep", lambda _: held.release())
    asked = []
    found = tasks.run_tasks(kept_squares(tmp_path, asked), mesh=mesh)
    assert found == [i * i for i in range(N)]
    assert asked == [0, 1, 3, 4, 5, 6, 2]


def test_a_task_that_another_run_finished_meanwhile_is_read_and_not_computed():
    looked, asked = [], []

    def read(number):
        looked.append(number)
        return "theirs" if number == 2 and looked.count(2) > 1 else None

    def compute(number, tell):
        asked.append(number)
        return number

    work = dataclasses.replace(squares(compute, {}), read=read)
    mesh = devices.make_mesh(jax.devices()[:1])
    assert tasks.run_tasks(work, mesh=mesh) == [0, 1, "theirs", 3, 4, 5, 6]
    assert asked == [0, 1, 3, 4, 5, 6]


def test_an_accelerator_runs_one_task_at_a_time():
    gpus = [types.SimpleNamespace(platform="gpu") for _ in range(2)]
    assert tasks._list_places(types.SimpleNamespace(local_devices=gpus), per_cpu=3) == gpus


def test_files_of_other_settings_are_said_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        task_files.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    old = TaskFiles(str(tmp_path), "square", "old")
    for number in range(N):
        old.write_json(number, 1, key="v")
    mesh = devices.make_mesh(jax.devices()[:1])
    found = tasks.run_tasks(kept_squares(tmp_path, []), mesh=mesh)
    assert found == [i * i for i in range(N)]
    assert len(lines) == 1
    assert "made from other data or settings; it is computed again, and so is every" in lines[0]


@pytest.mark.slow
def test_interrupted_threads_are_not_waited_for():
    mesh = devices.make_mesh(jax.devices()[:2])
    go_on = threading.Event()

    def compute(i, tell):
        if i == 0:
            raise KeyboardInterrupt
        go_on.wait(20)
        return i

    with pytest.raises(KeyboardInterrupt):
        tasks.run_tasks(squares(compute, {}), mesh=mesh)
    assert not go_on.is_set()
    go_on.set()
