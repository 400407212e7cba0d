"""The book in a browser: every page opened in Chromium with every other host out of reach."""

import re
from pathlib import Path

import pytest
from browsing import PATIENCE, chromium, dead_links, look_at, served

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = re.compile(r"github(?:\.com)?/[\w-]+/[\w-]+/(?:blob|edit|tree)/main/([^?#]+)")

browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="module")
def seen(browser, book):
    return look_at(browser, book.site)


def found(seen, what) -> dict:
    """{page: what is wrong there}, for the pages where something is."""
    return {name: wrong for name, page in seen.items() if (wrong := what(page))}


def test_no_page_complains(seen):
    assert found(seen, lambda page: page.console) == {}


def test_nothing_is_asked_in_vain(seen):
    assert found(seen, lambda page: page.failed) == {}


def test_nothing_is_asked_of_other_hosts(seen):
    assert found(seen, lambda page: page.outside) == {}


def test_every_picture_is_shown(seen):
    assert found(seen, lambda page: page.broken) == {}


def test_every_formula_is_set(seen):
    assert found(seen, lambda page: page.raw + page.wrong) == {}
    assert seen["book/stitching.html"].formulas > 20


def test_every_page_has_one_title(seen):
    assert found(seen, lambda page: len(page.headings) != 1) == {}


def test_no_link_is_dead(seen, book):
    assert dead_links(seen, book.site) == []


def test_links_to_the_repository_name_files_in_it(seen):
    links = {link for page in seen.values() for link in page.links}
    named = {match[1] for link in links if (match := REPOSITORY.search(link))}
    assert "notebooks/stitching.ipynb" in named
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_page_fits_a_telephone(seen):
    assert found(seen, lambda page: page.overflow > 0 and page.overflow) == {}


@pytest.fixture
def page(browser, book):
    with served(book.site) as address, browser.new_page(color_scheme="light") as page:
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_url("**/intro.html")
        yield page


def test_the_front_door_leads_in(page):
    assert page.locator("h1:visible").count() == 1


def test_search_finds_a_word(page):
    page.locator(".search-button__button:visible").first.click()
    page.locator("input[name=q]:visible").fill("Procrustes")
    page.keyboard.press("Enter")
    page.locator("#search-results li").filter(has_text="Model stitching: the method").wait_for()


def test_the_theme_turns_dark(page):
    def brightness() -> int:
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    light = brightness()
    for _ in range(3):
        page.locator(".theme-switch-button:visible").first.click()
        if page.evaluate("document.documentElement.dataset.mode") == "dark":
            break
    page.wait_for_timeout(300)
    assert brightness() < 150 < 600 < light


BROKEN = {
    "good.html": "<h1>Good</h1><p id='here'>US$, <code>$x$</code></p><a href='good.html#here'>here</a>",
    "bad.html": """<h1>Bad</h1><h1>Again</h1><img src="missing.png"><p style="width: 600px">$x^2$</p>
        <script>console.error("alas"); fetch("http://example.org/x").catch(() => 0); nothing.at.all</script>
        <a href="good.html#there"></a><a href="none.html"></a><span class="math">x</span><mjx-merror>y</mjx-merror>""",
}


def test_what_is_broken_is_seen(browser, tmp_path):
    for name, body in BROKEN.items():
        (tmp_path / name).write_text(f"<!DOCTYPE html><link rel='icon' href='data:,'><body>{body}</body>", "utf-8")
    seen = look_at(browser, tmp_path)
    good, bad = seen["good.html"], seen["bad.html"]
    assert not (good.console + good.failed + good.outside + good.raw + good.wrong + good.broken)
    assert (len(good.headings), good.overflow) == (1, 0)

    said = "\n".join(bad.console)
    assert "alas" in said and "nothing is not defined" in said and "missing.png" not in good.failed
    assert any(url.endswith("missing.png") for url in bad.failed) and bad.broken == ["missing.png"]
    assert bad.outside == ["http://example.org/x"]
    assert bad.raw == ["$x^2$", "x"] and bad.wrong == ["y"]
    assert len(bad.headings) == 2 and bad.overflow > 100
    assert dead_links(seen, tmp_path) == ["bad.html: good.html#there", "bad.html: none.html"]


def test_a_click_sorts_the_survey(browser, book):
    with served(book.site) as address, browser.new_page() as page:
        page.goto(f"{address}book/distillation.html")
        gains = (
            "[...document.querySelectorAll('table.taxonomy tbody tr')].map(row => parseFloat(row.cells[2].innerText))"
        )
        title = page.locator("table.taxonomy th button").nth(2)
        title.click()
        rising = page.evaluate(gains.replace("row.cells[2].innerText", "row.cells[2].innerText.replace('−', '-')"))
        assert rising == sorted(rising)
        assert len(rising) == 18
        title.click()
        assert page.locator("table.taxonomy tbody td").nth(1).inner_text().startswith("Fine-grained imitation")
