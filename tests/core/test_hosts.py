"""What real processes exchange, and how a failure in one ends the same block in all."""

import json

import jax
import numpy as np
import pytest
import workers

from pathorob_jax.core import devices, hosts

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
