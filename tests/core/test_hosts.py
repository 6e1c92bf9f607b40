"""What real processes exchange, and how a failure in one ends the same block in all."""

import io
import json
import os
import platform
import resource

import jax
import numpy as np
import pytest
import workers

from pathorob_jax.core import devices, hosts
from pathorob_jax.core.checks import InputError

# Failures by the block in which process 1 fails; a block is run again after each.
WORKER = """
import json, sys
import jax, numpy as np
from pathorob_jax.core import devices, hosts
from pathorob_jax.core.checks import InputError

port, number = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"localhost:{port}", 2, number)
everywhere = devices.make_mesh()
said = {"joint": hosts.is_joint(everywhere), "leads": hosts.leads(everywhere)}
said["here"] = [hosts.is_joint(devices.local_mesh(everywhere)), hosts.leads(None)]
part = np.arange(2 * number, 5 * number + 1, dtype=np.int64)[:, None] * [1, 10]
said["gathered"] = hosts.gather(part).tolist()
fine = hosts.gather(np.full((number, 2), 1 / 3 + number * 2.0**-50))
said["fine"] = [str(fine.dtype), fine.shape, fine.tolist()]
said["told"] = [hosts.tell_all(everywhere, f"Grüße von {number}"), hosts.tell_all(None, "own")]

def fail(where, here):
    if where == here and number == 1:
        raise ValueError(f"bad at {where}")

def run(where):
    with hosts.together("outer"):
        with hosts.together("middle"):
            fail(where, "middle")
            with hosts.together("inner"):
                fail(where, "inner")
            fail(where, "after")
        fail(where, "outer")

order = []
for where in ("inner", "middle", "after", "outer", "none", "middle", "inner"):
    try:
        run(where)
        order.append("done")
    except (InputError, ValueError) as error:
        order.append(str(error).partition(";")[0])
said["order"] = order
begun = hosts.lead_first("artefacts", everywhere, lambda lead: f"lead {lead}")
said["begun"] = begun
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_exchange_and_fail_in_the_same_blocks(tmp_path):
    port = workers.free_port()
    run = workers.Workers(WORKER, [(port, i) for i in range(2)], tmp_path)
    lines = [words.splitlines() for words in run.finish([0, 0], within_s=120)]
    first, second = (json.loads(next(x for x in own if x.startswith("{"))) for own in lines)
    assert [said["joint"] for said in (first, second)] == [True, True]
    assert [said["leads"] for said in (first, second)] == [True, False]
    assert first["here"] == second["here"] == [False, True]
    rows = [0, 2, 3, 4, 5]
    assert first["gathered"] == second["gathered"] == [[row, 10 * row] for row in rows]
    assert first["fine"] == second["fine"] == ["float64", [1, 2], [[1 / 3 + 2.0**-50] * 2]]
    assert first["told"] == second["told"] == ["Grüße von 0", "own"]
    names = {"inner": "inner", "middle": "inner", "after": "middle", "outer": "outer"}
    order = ("inner", "middle", "after", "outer", "none", "middle", "inner")
    assert second["order"] == ["done" if o == "none" else f"bad at {o}" for o in order]
    # Where process 0 learns of it: at the end of the block that it is in.
    assert first["order"] == [
        "done" if o == "none" else f"{names[o]}: process 1 failed" for o in order
    ]
    assert [first["begun"], second["begun"]] == ["lead True", "lead False"]


def test_one_process_is_its_own_lead():
    mesh = devices.make_mesh(jax.local_devices()[:2])
    assert hosts.leads(mesh)
    assert not hosts.is_joint(mesh)
    assert hosts.tell_all(mesh, "own") == "own"
    part = np.arange(3)
    assert hosts.gather(part) is part
    with hosts.together_on(mesh, "block"), hosts.together("block"):
        pass
    assert hosts.lead_first("artefacts", mesh, lambda lead: lead) is True


@pytest.fixture
def of_two(monkeypatch):
    """This process is one of two; what is exchanged at the end of a block is the test's."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = []

    def answer_with(answer):
        monkeypatch.setattr(hosts, "_say", lambda failed_at: said.append(failed_at) or answer())

    yield said, answer_with
    assert (hosts._Blocks.depth, hosts._Blocks.leaving) == (0, None)


def test_the_failure_of_an_outer_block_is_learned_once_and_leaves_all_blocks(of_two):
    said, answer_with = of_two
    answer_with(lambda: np.asarray([-1, 0]))
    with (
        pytest.raises(InputError, match=r"^inner: process 1 failed; its own log says why"),
        hosts.together("outer"),
        hosts.together("middle"),
        hosts.together("inner"),
    ):
        pass
    assert said == [None]


def test_a_lost_process_is_said_unless_this_one_failed_by_itself(of_two):
    def lost():
        raise RuntimeError("UNAVAILABLE: heartbeat timeout\nmore")

    _, answer_with = of_two
    answer_with(lost)
    message = r"^the run: another process was lost \(UNAVAILABLE: heartbeat timeout\)\. Start all"
    with pytest.raises(hosts.LostProcessError, match=message), hosts.together("the run"):
        pass
    with pytest.raises(KeyError, match="own"), hosts.together("the run"):
        raise KeyError("own")


def test_other_systems_tell_cores_and_processor_in_other_ways(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for told, n_cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda told=told: told)
        assert hosts.n_cores() == n_cores
    monkeypatch.setattr(hosts.platform, "processor", lambda: "")
    monkeypatch.setattr(hosts.platform, "machine", lambda: "arm64")
    for text, name in (("model name\t: Fast 9\n", "Fast 9"), ("CPU part\t: 0xd0c\n", "arm64")):
        monkeypatch.setattr(hosts, "open", lambda _, text=text: io.StringIO(text), raising=False)
        assert hosts.processor_name.__wrapped__() == name


def count_faults():
    """Pages that the system gives for an array of 16 MiB that is made and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**21)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def no_settings(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's memory")
def test_freed_memory_is_kept_in_the_context_and_given_back_at_its_end(no_settings):
    with hosts.kept_memory():
        first = [count_faults() for _ in range(3)]
        held = resident_bytes()
    # Of 4,096 pages; other threads of the process take some, too.
    assert max(first[1:]) < 200
    assert resident_bytes() < held - 2**23


def test_options_of_memory_are_those_of_glibc_again(no_settings, monkeypatch):
    given = []
    monkeypatch.setattr(hosts, "_set_malloc", given.append)
    with pytest.raises(ValueError, match="inside"), hosts.kept_memory():
        raise ValueError("inside")
    assert given == [hosts.KEEPING_OPTIONS, hosts.USUAL_OPTIONS]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_users_own_settings_of_memory_stay(no_settings, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    given = []
    monkeypatch.setattr(hosts, "_set_malloc", given.append)
    with hosts.kept_memory():
        pass
    assert given == []


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
