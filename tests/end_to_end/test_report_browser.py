"""The report in a real Chromium, without a screen: it loads clean, asks for nothing, sorts by mouse and keyboard."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright
from twins import exported_twins

from spikeport import report

#: Where the screenshot of the last test run is kept.
KEPT = Path(__file__).parents[2] / "runs/tests/report.png"


@pytest.fixture(scope="module")
def html(tmp_path_factory, tiny) -> Path:
    folder = exported_twins(tmp_path_factory.mktemp("report"), tiny, samples=16)
    return report(folder / "snn", folder / "cnn", check=True, sample=3).page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium or Chrome, else the one `playwright install chromium` brought."""
    found = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            pytest.fail(f"no browser to test the report in (`make browser` installs one): {error}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visit(browser: Browser, html: Path) -> tuple[Page, list[str]]:
    """The opened page, and everything it complained about or asked for."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("request", lambda request: seen.append(f"request: {request.url}"))
    page.goto(html.as_uri(), wait_until="networkidle")
    return page, seen


def test_the_page_loads_without_an_error_and_asks_for_nothing(visit, html):
    page, seen = visit
    assert [line for line in seen if not line.startswith("request: data:")] == [f"request: {html.as_uri()}"]
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=KEPT, full_page=True)
    assert KEPT.stat().st_size > 50_000


def column(page: Page, index: int) -> list[float]:
    cells = page.locator(f"#table tbody tr > :nth-child({index + 1})").all()
    return [float(cell.get_attribute("data-value") or "nan") for cell in cells]


def test_a_heading_sorts_by_click_and_by_key_and_says_so(visit):
    page, _ = visit
    heads = page.locator("#table thead tr:last-child th")
    named = [heads.nth(i).get_by_role("button", name="AC, training", exact=True).count() for i in range(heads.count())]
    index = named.index(1)
    before, head = column(page, index), heads.nth(index)
    assert head.get_attribute("aria-sort") == "none"
    assert before not in (sorted(before), sorted(before, reverse=True))
    head.get_by_role("button").click()
    assert column(page, index) == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, index) == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    heads.nth(0).get_by_role("button").focus()
    page.keyboard.press("Space")
    names = page.locator("#table tbody tr > :nth-child(1)").all_inner_texts()
    assert names == sorted(names, key=str.lower)
    assert head.get_attribute("aria-sort") == "none"


def test_a_keyboard_reaches_every_sorting_heading_and_the_skip_link(visit):
    page, _ = visit
    buttons = page.locator("th button").count()
    page.locator("body").evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    page.evaluate("() => document.body.focus()")
    page.keyboard.press("Tab")
    reached = set()
    for _ in range(buttons + 60):
        reached.add(page.evaluate("() => [...document.querySelectorAll('th button')].indexOf(document.activeElement)"))
        page.keyboard.press("Tab")
    assert reached >= set(range(buttons))


def test_pictures_have_words(visit):
    page, _ = visit
    texts = [picture.get_attribute("aria-label") or "" for picture in page.locator("[role=img]").all()]
    assert len(texts) >= 8
    assert all(len(text) > 60 and any(c.isdigit() for c in text) for text in texts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_on_a_light_and_on_a_dark_page(visit, scheme):
    page, _ = visit
    page.emulate_media(color_scheme=scheme)
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    low = page.evaluate(CONTRAST)
    page.emulate_media(color_scheme="light")
    assert low == []


#: Texts whose contrast to the page (or their row's ground) is below 4.5 (WCAG 2, level AA).
CONTRAST = """() => {
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => { const s = c.map((v) => linear(v / 255));
    return .2126 * s[0] + .7152 * s[1] + .0722 * s[2]; };
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll("main *, header *")].filter((e) => !e.closest("svg") && e.textContent.trim()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
      const a = light(colour(getComputedStyle(e).color)), b = light(ground(e));
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.trim().slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


def test_every_row_of_a_table_has_its_columns(visit, browser, html):
    page, _ = visit
    alone = report(html.parents[1] / "loihi/fixed.npz", out=html.parents[2] / "alone").page
    other = browser.new_page()
    other.goto(alone.as_uri())
    for shown in (page, other):
        widths = shown.evaluate(WIDTHS)
        assert len(widths) >= 3
        assert {len(set(rows)) for rows in widths} == {1}
    assert "CNN" not in other.locator("#table thead").inner_text()


#: Of every table, how many columns each row takes.
WIDTHS = """() => [...document.querySelectorAll("table")].map((table) =>
  [...table.rows].map((row) => [...row.cells].reduce((sum, cell) => sum + cell.colSpan, 0)))"""


def test_the_layers_of_a_model_add_up_to_its_energy(visit):
    page, _ = visit
    models = page.locator("#energy-layers thead [scope=colgroup]").all_inner_texts()
    assert models == ["horowitz", "horowitz-int8", "lemaire"]
    rows = page.locator("#energy-layers tbody tr").all()
    sums = [0.0] * (2 * len(models))  # the CNN and training
    for row in rows:
        values = [float(cell.get_attribute("data-value") or "nan") for cell in row.locator("td").all()]
        sums = [a + max(b, 0) for a, b in zip(sums, values, strict=True)]  # -1: not in this network
    shown = {
        row.locator("th").inner_text(): row.locator("td").all() for row in page.locator("#energy-table tbody tr").all()
    }
    totals = [float(shown[m][k].get_attribute("data-value") or "nan") for m in models for k in range(2)]
    assert sums == pytest.approx(totals)
    assert min(totals) > 0


def test_the_names_of_layers_stay_where_a_table_is_moved_sideways(visit):
    page, _ = visit
    page.set_viewport_size({"width": 500, "height": 800})
    name = page.locator("#table tbody th").first
    before = name.bounding_box() or {}
    page.locator(".wide:has(#table)").evaluate("(e) => { e.scrollLeft = 300; }")
    after = name.bounding_box() or {}
    page.set_viewport_size({"width": 1400, "height": 1000})
    assert after["x"] == before["x"]


def test_the_page_shows_what_was_asked_for(visit):
    page, _ = visit
    for name in ("horowitz", "horowitz-int8", "lemaire", "paper", "loihi1"):
        assert page.locator("#energy-table tbody th").get_by_text(name, exact=True).count() == 1
    assert "Loihi 1 cannot run this program" in page.locator("#energy-table").inner_text()
    assert "int8: accuracy" in page.locator("main").inner_text()
    assert "Spikes of image 3, layer by layer" in page.locator("main").inner_text()
    unexplained = page.locator("#check-table tbody tr > :nth-child(6)").all_inner_texts()
    assert len(unexplained) == 15
    assert set(unexplained) == {"0"}
