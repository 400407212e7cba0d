"""The book in a browser: every page opened in Chromium with every other host out of reach."""

import importlib.util
import re
from pathlib import Path

import pytest
from browsing import PATIENCE, chromium, dead_links, look_at, pages_in, served, weight

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = re.compile(r"github(?:\.com)?/[\w-]+/[\w-]+/(?:blob|edit|tree)/main/([^?#]+)")

NOTEBOOKS, RUNS = "notebooks/", "book/runs/"
WEIGHT = 1_500_000  # bytes of a first visit

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


def test_every_page_fits_a_desk_and_a_telephone(seen):
    assert found(seen, lambda page: {width: over for width, over in page.overflow.items() if over > 0}) == {}


def test_every_picture_is_described(seen):
    """No alternative text is missing, or the name of a file."""
    assert found(seen, lambda page: page.unsaid) == {}


def test_headings_leave_out_no_level(seen):
    assert found(seen, lambda page: page.jumps) == {}


def test_no_text_is_too_small_to_read(seen):
    assert found(seen, lambda page: page.tiny) == {}


def test_no_page_is_heavy(seen, book):
    assert found(seen, lambda page: (size := weight(page, book.site)) > WEIGHT and size) == {}
    assert weight(seen["book/stitching.html"], book.site) > 100_000


def test_texts_of_notebooks_lead_to_other_pages(seen):
    few = {name for name, page in seen.items() if name.startswith(NOTEBOOKS) and len(pages_in(page.cited, name)) < 3}
    assert few == set()


def test_stored_runs_lead_to_other_pages(seen):
    few = {n for n, page in seen.items() if n.startswith(RUNS) and len(pages_in(page.cited + page.more, n)) < 3}
    assert few == set()


def test_every_notebook_and_run_is_linked_from_a_text(seen):
    named = set().union(*(pages_in(page.cited, name) for name, page in seen.items()))
    assert {name for name in seen if name.startswith((NOTEBOOKS, RUNS))} - named == set()


@pytest.mark.parametrize(
    "place",
    ["book/howto.html#stitch-your-own", "book/claims.html#claim-kd-digits", "book/claims.html#claim-l2t-weights"],
)
def test_the_first_page_leads_to_the_first_questions(seen, place):
    assert place in seen["book/intro.html"].cited


# One page of each kind; of the claims those with few, for what is not shown costs no time.
KINDS = [
    "book/intro.html", "book/merging.html", "book/api/merging.html", "notebooks/training.html",
    "book/claims.html?verdict=contradicted", "book/claims.html?verdict=did+not+hold", "book/claims.html?verdict=small",
]  # fmt: skip


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which checks a page's contrast, headings, names and structure."""
    if (spec := importlib.util.find_spec("axe_playwright_python")) is None:
        pytest.skip("needs axe-core: pip install axe-playwright-python")
    return (Path(spec.origin).parent / "axe.min.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KINDS)
def test_pages_are_accessible(browser, book, axe, name, scheme):
    """All rules of axe-core but one, on the page's text: its regions are the theme's."""
    with served(book.site) as address, browser.new_page(color_scheme=scheme) as page:
        page.set_default_timeout(PATIENCE)
        page.goto(address + name, wait_until="load")
        page.evaluate(axe)
        options = {"resultTypes": ["violations"], "rules": {"region": {"enabled": False}}}
        found = page.evaluate("options => axe.run('article', options)", options)["violations"]
    assert {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in found} == {}


@pytest.fixture
def claims(browser, book):
    with served(book.site) as address, browser.new_page(color_scheme="light") as page:
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}book/claims.html")
        yield page


def test_claims_are_filtered_by_verdict_and_subject(claims):
    everything = claims.locator(".claim:visible").count()
    claims.get_by_label("Verdict").select_option("held")
    assert 0 < claims.locator(".claim:visible").count() < everything
    assert set(claims.locator(".claim:visible .verdict").all_inner_texts()) == {"held"}
    claims.get_by_label("Subject").select_option("Merging")
    assert claims.locator(".claim:visible").count() == claims.locator("#merging .claim.verdict-held").count() > 0
    assert claims.locator("section h2:visible").all_inner_texts()[0].startswith("Merging")
    claims.get_by_label("Verdict").select_option("all")
    claims.get_by_label("Subject").select_option("all")
    assert claims.locator(".claim:visible").count() == everything


def test_without_scripts_all_claims_are_shown(browser, book):
    with served(book.site) as address, browser.new_page(java_script_enabled=False) as page:
        page.goto(f"{address}book/claims.html")
        assert page.locator(".claim:visible").count() == page.locator(".claim").count() > 50


def test_a_claim_has_an_address(claims):
    claims.goto(claims.url + "#claim-kd-digits")
    assert claims.locator("#claim-kd-digits").bounding_box()["y"] < 900


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
    "good.html": """<main><h1>Good</h1><h2>Better</h2><article><p id='here'>US$, <code>$x$</code></p>
        <img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">
        <a href='good.html#here'>here</a></article></main>""",
    "bad.html": """<main><h1>Bad</h1><h1>Again</h1><h3>Deep</h3><article>
        <img src="missing.png"><img src="missing.png" alt="missing.png">
        <p style="font-size: 7px">small</p>
        <svg viewBox="0 0 200 20" width="100"><text y="9" font-size="12">scaled</text></svg>
        <a href="good.html#there">a</a><a href="none.html">b</a></article></main><p style="width: 600px">$x^2$</p>
        <script>console.error("alas"); fetch("http://example.org/x").catch(() => 0); nothing.at.all</script>
        <span class="math">x</span><mjx-merror>y</mjx-merror>""",
}


def test_what_is_broken_is_seen(browser, tmp_path):
    for name, body in BROKEN.items():
        (tmp_path / name).write_text(f"<!DOCTYPE html><link rel='icon' href='data:,'><body>{body}</body>", "utf-8")
    seen = look_at(browser, tmp_path)
    good, bad = seen["good.html"], seen["bad.html"]
    assert not (good.console + good.failed + good.outside + good.raw + good.wrong + good.broken)
    assert not (good.jumps + good.unsaid + good.tiny)
    assert (len(good.headings), max(good.overflow.values())) == (1, 0)

    said = "\n".join(bad.console)
    assert "alas" in said and "nothing is not defined" in said and "missing.png" not in good.failed
    assert any(url.endswith("missing.png") for url in bad.failed) and bad.broken == ["missing.png"] * 2
    assert bad.outside == ["http://example.org/x"]
    assert bad.raw == ["$x^2$", "x"] and bad.wrong == ["y"]
    assert len(bad.headings) == 2 and bad.overflow[1300] == 0 and bad.overflow[420] > 100
    assert bad.jumps == ["Deep"] and bad.tiny == ["small", "scaled"]
    assert bad.unsaid == ["missing.png", "missing.png"]
    assert pages_in(bad.cited, "bad.html") == {"good.html", "none.html"}
    assert 0 < weight(good, tmp_path) < 300
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
