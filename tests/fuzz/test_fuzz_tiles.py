"""Short campaigns of images and tilesets; ``make fuzz`` runs longer ones."""

import fuzz_images
import fuzz_tilesets
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("campaign", "module", "n"),
    [
        (fuzz_images.fuzz_images, fuzz_images, 80),
        (fuzz_tilesets.fuzz_tilesets, fuzz_tilesets, 16),
        pytest.param(fuzz_images.fuzz_images, fuzz_images, 1_000, marks=pytest.mark.campaign),
        pytest.param(fuzz_tilesets.fuzz_tilesets, fuzz_tilesets, 90, marks=pytest.mark.campaign),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_odd_is_refused_by_name_or_read_right(campaign, module, n):
    module.FAILURES.clear()
    count = campaign(n, seed=n)
    assert count.total() == n
    assert count[module.TRACEBACK] == count[module.SILENT] == 0, "\n".join(module.FAILURES)
    assert min(count[module.CLEAN], count[module.EQUAL]) > n // 6, "it both refuses and reads"
