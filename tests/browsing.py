"""A site as a reader's browser shows it: every page opened in Chromium, and what was seen there."""

import contextlib
import gzip
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No name is looked up but this machine's: whatever a page asks of another host fails.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip

PATIENCE = 180_000  # ms: how long a page may take on a busy machine before it counts as stuck

# Run in the page. Text in code, scripts, form fields and rendered formulas is not looked at for dollars.
LOOK = r"""
async () => {
  await window.MathJax?.startup?.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const all = (query) => [...document.querySelectorAll(query)];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const raw = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent;
    if (walker.currentNode.parentElement.closest("code, pre, script, style, textarea, mjx-container")) continue;
    raw.push(...(text.match(/\$[^$\n]+\$|\\[([]|\\begin\{/g) ?? []));
  }
  const size = (element) => {
    const scale = element.ownerSVGElement ? element.getScreenCTM().a : 1;
    return parseFloat(getComputedStyle(element).fontSize) * scale;
  };
  const texts = all("body *").filter(element => element.checkVisibility() && !element.closest("mjx-container, style"))
    .filter(element => [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
  const levels = all("main :is(h1, h2, h3, h4, h5, h6)").filter(heading => heading.checkVisibility());
  const jumps = levels.filter((heading, i) => heading.tagName[1] - (i ? levels[i - 1].tagName[1] : 0) > 1);
  const unset = all(".math").filter(formula => !formula.querySelector("mjx-container"));
  return {
    raw: [...raw, ...unset.map(formula => formula.textContent)],
    wrong: all("mjx-merror, merror, [data-mjx-error]").map(formula => formula.textContent),
    formulas: all("mjx-container").length,
    broken: all("img").filter(image => !image.naturalWidth).map(image => image.getAttribute("src")),
    headings: all("h1").filter(heading => heading.checkVisibility()).map(heading => heading.textContent),
    jumps: jumps.map(heading => heading.textContent),
    unsaid: all("article img").filter(image => !image.alt.trim() || /\.(png|svg|jpe?g|gif)$/i.test(image.alt))
      .map(image => image.getAttribute("src")),
    tiny: texts.filter(element => 0 < size(element) && size(element) < 8).map(element => element.textContent),
    loaded: [location.href, ...performance.getEntriesByType("resource").map(entry => entry.name)],
    links: all("a[href]").map(link => link.href),
    cited: all("article a[href]:not(.headerlink, .see-also *)").map(link => link.href),
    more: all(".see-also a[href]").map(link => link.href),
    names: all("[id], a[name]").map(target => target.id || target.name),
  };
}
"""
WIDTHS = (1300, 420)  # of a desk and of a telephone
OVERFLOW = "document.scrollingElement.scrollWidth - window.innerWidth"


@dataclass
class Seen:
    """One page: complaints of the console, requests that failed or left the site, and what `LOOK` found."""

    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    formulas: int = 0
    broken: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    jumps: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    cited: list[str] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    overflow: dict[int, int] = field(default_factory=dict)


def chromium() -> Iterator:
    """A headless Chromium: the one that Playwright downloaded, else the system's, else the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        program = str(own) if own.is_file() else next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            pytest.skip("needs Chromium: `playwright install --with-deps chromium`, or `apt-get install chromium`")
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS, timeout=PATIENCE)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of `folder` on a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def pages_of(folder: Path) -> list[str]:
    """All pages but the front doors, which only lead on to another."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.html")]
    return sorted(name for name in names if Path(name).name != "index.html" and not name.startswith("_static/"))


def look_at(browser, folder: Path) -> dict[str, Seen]:
    """Every page of the site in `folder`, opened wide, then measured at the width of a telephone too."""
    with served(folder) as address, browser.new_page(color_scheme="light") as page:
        page.set_default_timeout(PATIENCE)
        found, now = {}, Seen()
        page.on("console", lambda said: now.console.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: now.console.append(str(error)))
        page.on("request", lambda asked: None if own(asked.url, address) else now.outside.append(asked.url))
        page.on("requestfailed", lambda asked: now.failed.append(asked.url))
        page.on("response", lambda answer: now.failed.append(answer.url) if answer.status >= 400 else None)
        for name in pages_of(folder):
            found[name] = now = Seen()
            page.set_viewport_size({"width": WIDTHS[0], "height": 900})
            page.goto(address + name, wait_until="load")
            for key, value in page.evaluate(LOOK).items():
                setattr(now, key, value)
            for links in (now.links, now.cited, now.more, now.loaded):
                links[:] = [link.removeprefix(address) if own(link, address) else link for link in links]
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                now.overflow[width] = page.evaluate(OVERFLOW)
    return found


def own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def weight(page: Seen, folder: Path) -> int:
    """Bytes that a first visit to the page loads, texts compressed as web servers send them."""
    return sum(_sent(folder / unquote(urldefrag(name)[0].partition("?")[0])) for name in set(page.loaded))


@cache
def _sent(path: Path) -> int:
    """Bytes of a file as it is sent; 0 for what is in the page itself."""
    content = path.read_bytes() if path.is_file() else b""
    return len(gzip.compress(content) if path.suffix in (".html", ".css", ".js", ".svg") else content)


def pages_in(links: list[str], name: str) -> set[str]:
    """The pages, of this site or not, that links of page `name` lead to, itself left out."""
    return {urldefrag(link)[0].partition("?")[0] for link in links} - {name, ""}


def dead_links(seen: dict[str, Seen], folder: Path) -> list[str]:
    """Links to pages or files that the site lacks, or to places that their page lacks."""
    dead = []
    for name, page in seen.items():
        for link in page.links:
            if link.startswith(("http:", "https:", "mailto:", "javascript:")):
                continue
            target, place = map(unquote, urldefrag(link))
            there = (folder / target).is_file() or (folder / target / "index.html").is_file()
            known = place in ("", "top") or target not in seen or place in seen[target].names
            dead += [] if there and known else [f"{name}: {link}"]
    return dead
