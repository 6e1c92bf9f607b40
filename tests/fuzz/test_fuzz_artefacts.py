"""Short campaigns: whatever is damaged is refused by name, left out with a word, or read right."""

import damage
import fuzz_results
import fuzz_store
import pytest


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(
    ("campaign", "n"),
    [
        (fuzz_store.fuzz_store_files, 60),
        (fuzz_results.fuzz_results, 40),
        (fuzz_results.fuzz_tasks_and_graphs, 60),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_refused_by_name_or_read_right(campaign, n):
    damage.FAILURES.clear()
    count = campaign(n, seed=1)
    assert count.total() == n
    assert count[damage.TRACEBACK] == count[damage.SILENT] == 0, "\n".join(damage.FAILURES)
    assert count[damage.CLEAN] > n // 3, "most damage is seen"
