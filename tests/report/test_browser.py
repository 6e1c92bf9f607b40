"""The page in Debian's Chromium: quiet, at home, sorted, filtered, printed, read in any way."""

import pathlib

import numpy as np
import pytest
from report_records import (
    make_apd,
    make_clusters,
    make_margins,
    make_probes,
    make_record,
    make_retrieval,
    make_undefined,
    read_csv,
)

from pathorob_jax.data import synthetic_tiles
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.data.tileset import open_tileset
from pathorob_jax.evaluation.embedding_maps import find_nearest
from pathorob_jax.report.write import write_report
from pathorob_jax.results.map_files import write_map
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import write_outcome, write_result

CHROMIUM = "/usr/bin/chromium"
LONG = "an_encoder_whose_name_is_as_long_as_names_of_checkpoints_are_step_100000"
MODELS = ("virchow2", "virchow2_clsmean", "uni", "北京医院", "القاهرة", LONG)
MAKERS = (make_record, make_apd, make_clusters, make_margins, make_probes, make_retrieval)

pytestmark = [pytest.mark.slow, pytest.mark.campaign]


@pytest.fixture(scope="module")
def browser():
    """One browser for the module."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not pathlib.Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is absent")
    with driver.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Results of several models, with a map and its tiles."""
    root = tmp_path_factory.mktemp("browser")
    results, rng = str(root / "results"), np.random.default_rng(0)
    for place, model in enumerate(MODELS):
        for dataset in ("tiles", "more"):
            for make in MAKERS:
                write_result(results, make(model, dataset))
            record = make_record(model, dataset, index=0.9 - place / 10)
            drawn = record.robustness_index + rng.normal(0, 0.05, 400)
            write_outcome(results, Outcome(record, "key", {"robustness_index": drawn}))
    write_result(results, make_undefined("lost", "tiles"))
    tiles = str(root / "tiles")
    config = synthetic_tiles.SyntheticConfig(n_slides=2, n_tiles=3, tile_px=32)
    synthetic_tiles.write_tileset(tiles, config)
    rows = open_tileset(tiles).manifest
    x = rng.normal(size=(len(rows), 8))
    labels = np.stack([rows.factorize(name).ids for name in (CLASS, CENTER, SLIDE)])
    path = str(root / "results/uni/tiles/maps/dataset.parquet")
    write_map(path, "tiles", rows, rng.normal(size=(len(rows), 4)), find_nearest(x, labels))
    write_report(results, str(root / "report"), tiles=tiles)
    return root / "report"


@pytest.fixture
def page(browser, report):
    """The page, with what it says and asks for in ``page.heard``."""
    with_page = browser.new_page(viewport={"width": 1400, "height": 900})
    yield visit(with_page, report)
    assert with_page.heard == [], with_page.heard
    with_page.close()


def visit(page, report):
    """Open a report; ``heard`` gathers messages, errors, and requests beyond the page."""
    page.heard = []
    url = (report / "index.html").as_uri()
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda r: page.heard.append(r.url) if is_foreign(r.url, url) else None)
    page.goto(url)
    return page


def is_foreign(url, own):
    return url.split("#")[0] != own and not url.startswith("data:")


def open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")


def first_column(page, table="#headline table"):
    """Names of the rows that are shown, from top to bottom."""
    return page.evaluate(
        "table => [...document.querySelectorAll(table + ' tbody tr:not([hidden]) th')]"
        ".map(head => head.textContent.trim())",
        table,
    )


def numbers(page, column):
    """Texts of a column of the first table of the index."""
    return page.evaluate(
        "column => [...document.querySelectorAll('#headline tbody tr')]"
        ".map(row => row.cells[column].querySelector('b').textContent)",
        column,
    )


def test_tables_are_sorted_by_pointer_and_by_keys(page):
    at_first = numbers(page, 2)
    head = page.locator("#headline thead th").nth(2)
    head.locator("button").click()
    down = numbers(page, 2)
    assert head.get_attribute("aria-sort") == "descending"
    known = [n for n in down if n != "–"]
    assert down == [*sorted(known, reverse=True), "–"]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(page, 2) == [*sorted(known), "–"]
    head.locator("button").press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('th').cellIndex") == 1
    # Undefined numbers come last, upwards and downwards.
    tiles = page.locator("#headline thead th").nth(3).locator("button")
    for _ in range(2):
        tiles.press("Enter")
        assert numbers(page, 3)[-1] == "–"
    n_tables, n_unsorted = page.evaluate(
        "[document.querySelectorAll('table').length,"
        " document.querySelectorAll('table:not(:has(thead button))').length]"
    )
    assert n_tables > 20
    assert n_unsorted == 0
    assert numbers(page, 2) != at_first
    page.click("#filters [type=reset]")
    page.wait_for_function("!document.querySelector('#headline [aria-sort]')")
    assert numbers(page, 2) == at_first


def test_filters_by_model_family_licence_dataset_and_metric(page):
    everyone = first_column(page)
    assert set(everyone) == {*MODELS, "lost"}
    page.fill("#filters [name=model]", "virchow2, 北京")
    assert set(first_column(page)) == {"virchow2", "virchow2_clsmean", "北京医院"}
    shown = page.evaluate(
        "[...document.querySelectorAll('#curves .panel:not([hidden])')].map(p => p.dataset.model)"
    )
    assert set(shown) == {"virchow2", "virchow2_clsmean", "北京医院"}
    heads = "[...document.querySelectorAll('#groups thead th[data-model]:not([hidden])')]"
    assert page.evaluate(f"{heads}.every(head => head.dataset.model !== 'uni')")
    said = page.inner_text("#filters output")
    assert said.startswith("3 of 7 models, all 2 datasets, all ")
    dots = "[...document.querySelectorAll('.front circle, .front rect')]"
    away = page.evaluate(
        f"{dots}.filter(d => getComputedStyle(d).display === 'none').map(d => d.dataset.model)"
    )
    assert set(away) == {"uni", "القاهرة", LONG}
    maps = page.locator("#maps details.part")
    assert maps.count() == 1
    assert maps.is_hidden()
    page.fill("#filters [name=model]", "uni")
    assert maps.is_visible()
    page.click("#filters [type=reset]")
    page.wait_for_function(
        "document.querySelector('#filters output').textContent.startsWith('all')"
    )
    page.select_option("#filters [name=family]", "virchow2")
    assert first_column(page) == ["virchow2", "virchow2_clsmean"]
    page.select_option("#filters [name=family]", "")
    licences = page.evaluate(
        "[...document.querySelector('[name=licence]').options].map(o => o.value)"
    )
    page.select_option("#filters [name=licence]", "not known")
    assert set(first_column(page)) == {"北京医院", "القاهرة", LONG, "lost"}
    assert len(licences) >= 3
    page.select_option("#filters [name=licence]", "")
    page.select_option("#filters [name=metric]", "drop")
    sections = "[...document.querySelectorAll('#metrics > section:not([hidden])')].map(s => s.id)"
    assert page.evaluate(sections) == ["drop"]
    page.select_option("#filters [name=dataset]", "more")
    parts = "[...document.querySelectorAll('#drop .part[data-dataset]:not([hidden])')]"
    assert page.evaluate(f"{parts}.map(part => part.dataset.dataset)") == ["more"]
    assert page.evaluate("document.querySelector('th[data-dataset=tiles]').hidden")
    assert "1 of 2 datasets, 1 of " in page.inner_text("#filters output")
    # The first table has the columns of the metric alone, and what it is read with.
    heads = "[...document.querySelectorAll('#overview thead th:not([hidden])')]"
    metrics = page.evaluate(f"{heads}.map(head => head.dataset.metric || '')")
    assert set(metrics) == {"", "apd"}
    assert page.locator("#headline").is_hidden()


def test_poolings_of_an_encoder_are_put_together(page):
    before = first_column(page)
    page.check("#filters [name=grouped]")
    names = first_column(page)
    assert names.index("virchow2_clsmean") == names.index("virchow2") + 1
    kin = "[...document.querySelectorAll('#headline tr.kin')].map(row => row.dataset.model)"
    assert page.evaluate(kin) == ["virchow2_clsmean"]
    page.uncheck("#filters [name=grouped]")
    assert first_column(page) == before


def test_all_is_reached_by_keys(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    # After the links and parts of the first screen come the filters.
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "model":
            break
    assert page.evaluate("document.activeElement.name") == "model"
    part = page.locator("#drop details.part").first
    part.evaluate("part => part.open = false")
    part.locator("summary").first.press("Enter")
    assert part.evaluate("part => part.open")
    # A link to a table within closed parts, or to a download, opens what holds it.
    page.evaluate("location.hash = '#csv-apd.csv'")
    assert page.locator("#csv-apd\\.csv a").get_attribute("download") == "apd.csv"


def test_a_download_is_the_file_beside(page, report):
    with page.expect_download() as found:
        page.click("#overview caption a")
    assert found.value.suggested_filename == "headline.csv"
    assert pathlib.Path(found.value.path()).read_bytes() == (report / "headline.csv").read_bytes()
    page.heard.clear()  # the download itself is a request of the page's own data


def test_a_map_names_what_lies_under_the_pointer(page):
    page.evaluate("document.querySelector('#maps details').open = true")
    picture = page.locator("#maps svg[data-method]").first
    picture.scroll_into_view_if_needed()
    spot = page.evaluate(
        "(() => { const map = document.querySelector('.map');"
        "const picture = map.querySelector('svg[data-method]'), d = map.querySelector('defs path');"
        "const [, x, y] = d.getAttribute('d').match(/m(-?\\d+) ?(-?\\d+)z/);"
        "const box = picture.getBoundingClientRect(), view = picture.viewBox.baseVal;"
        "const scale = box.width / view.width;"
        "return [box.left + (x - view.x) * scale, box.top + (y - view.y) * scale]; })()"
    )
    page.mouse.move(*spot)
    said = page.inner_text("#maps .said")
    assert said.startswith("slide ")
    assert said.count(" · ") == 2
    for _ in range(3):
        picture.press("ArrowRight")
    assert page.inner_text("#maps .said") != said
    assert page.locator("#maps .so-tile img").count() >= 4
    assert page.locator("#maps .os-tile img").count() >= 4
    assert page.evaluate(
        "[...document.querySelectorAll('#maps img')].every(i => i.naturalWidth === 96 && i.alt)"
    )


def test_any_two_models_are_compared(page, report):
    """Either order gives the numbers of comparisons.csv, with the sign of the order."""
    rows = read_csv(report / "comparisons.csv")
    wanted = {"uni", "virchow2"}
    of_mean = [r for r in rows if r["dataset"] == "mean" and {r["model_a"], r["model_b"]} == wanted]
    assert of_mean
    for first, second in (("uni", "virchow2"), ("virchow2", "uni")):
        page.select_option("#pairs [name=first]", first)
        page.select_option("#pairs [name=second]", second)
        said = page.inner_text("#pairs output")
        for row in of_mean:
            sign = 1 if row["model_a"] == first else -1
            shown = f"{sign * float(row['difference']):+.3f}".replace("-", "−")
            assert f"{row['statistic']} (mean over datasets): {shown}, 95 % interval" in said
    page.select_option("#pairs [name=second]", "virchow2")
    page.select_option("#pairs [name=first]", "virchow2")
    assert page.inner_text("#pairs output") == ""


def test_words_are_explained_by_keys_and_without_a_script(page):
    asked = page.locator(".front .what").first
    word = page.locator("#word-front")
    assert word.is_hidden()
    asked.press("Enter")
    assert "no other encoder beats" in word.inner_text()
    page.keyboard.press("Escape")
    assert word.is_hidden()
    targets = page.evaluate(
        "[...document.querySelectorAll('[popovertarget]')].map(b => b.popoverTargetElement.id)"
    )
    known = {"front", "chance", "no-association", "v", "croma", "f0"}
    assert known <= {target.removeprefix("word-") for target in targets}


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "light"),
        (390, "dark"),
        pytest.param(1400, "light", marks=pytest.mark.campaign),
        (1400, "dark"),
    ],
)
def test_nothing_is_cut_off_or_unreadable(browser, report, width, scheme):
    """No part of the page is wider than the screen but in a box that scrolls; axe finds nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    visit(page, report)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        "width => [...document.querySelectorAll('.panel svg, .map svg, figure, p, li, h2, form')]"
        ".filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > width + 1)"
        ".map(e => e.outerHTML.slice(0, 80))",
        width,
    )
    assert cut == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")
    if (width, scheme) in ((390, "light"), (1400, "dark")):  # axe reads for long
        page.close()
        return
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    bad = [
        (one["id"], one["nodes"][0]["html"][:160], one["nodes"][0].get("failureSummary", "")[:300])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert bad == []
    assert page.heard == []
    page.close()


def test_print_has_all_parts_and_no_box_that_scrolls(page):
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = false)")
    page.emulate_media(media="print", color_scheme="dark")
    hidden = page.evaluate(
        "[...document.querySelectorAll('main table')]"
        ".filter(table => !table.getBoundingClientRect().height).length"
    )
    assert hidden == 0
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    data = page.pdf(prefer_css_page_size=True)
    assert data.startswith(b"%PDF")
    assert data.count(b"/Type /Page\n") > 5


@pytest.mark.campaign
def test_the_page_is_read_without_a_script(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((report / "index.html").as_uri())
    assert page.locator("#filters").is_hidden()
    assert page.locator("#headline table").is_visible()
    part = page.locator("#drop details.part").nth(1)
    assert not part.locator("table").first.is_visible()
    part.locator("summary").first.click()
    assert part.locator("table").first.is_visible()
    assert part.locator(".panel svg").first.is_visible()
    context.close()


@pytest.mark.campaign
def test_thirty_models_are_a_page_of_ten_thousand_pixels(browser, tmp_path):
    results = str(tmp_path / "results")
    for place in range(30):
        for dataset in ("one", "two", "three"):
            for make in MAKERS:
                write_result(results, make(f"model_{place}", dataset))
            record = make_record(
                f"model_{place}", dataset, index=place / 30, ks=tuple(range(1, 90))
            )
            write_result(results, record)
    write_report(results, str(tmp_path / "report"))
    assert (tmp_path / "report/index.html").stat().st_size < 3_000_000
    page = visit(browser.new_page(viewport={"width": 1400, "height": 900}), tmp_path / "report")
    assert page.evaluate("document.documentElement.scrollHeight") < 10_000
    assert page.heard == []
    page.close()
