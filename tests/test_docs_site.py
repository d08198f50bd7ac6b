"""The documentation as a site: it builds strictly, asks no other host for anything, and every link in it leads somewhere."""

import dataclasses
import importlib
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import unmask
from unmask.cli import VERBS
from unmask.methods import METHODS

ROOT = Path(__file__).parents[1]
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
"""What a browser asks for when it opens a page; of <link>, what its `rel` says."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


class Page(HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.fetched, self.code, self.within = set(), [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.ids |= {told["id"]} if told.get("id") else set()
        if tag == "a" and told.get("href"):
            self.links.append(told["href"])
        if tag in FETCHED and told.get(FETCHED[tag]):
            self.fetched.append(told[FETCHED[tag]])
        if tag == "link" and told.get("rel") not in ("next", "prev", "canonical"):
            self.fetched.append(told["href"])
        if told.get("style"):
            self.fetched += urls(told["style"])

        self.within = tag

    def handle_data(self, data):
        if self.within == "code":
            self.code.append(data)


read = cache(Page)


def urls(css: str) -> list[str]:
    """What a stylesheet asks for."""
    return [
        one.strip("'\"") for pair in re.findall(r"url\(([^)]*)\)|@import\s+['\"]([^'\"]+)", css) for one in pair if one
    ]


def test_every_page_stands_in_the_navigation(site):
    first = {urldefrag(link).url for link in read(site / "index.html").links}
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert pages
    for page in pages:
        built = page.with_name("index.html" if page.name == "README.md" else f"{page.stem}.html")
        assert (site / built).is_file(), page
        assert built.as_posix() in first | {"index.html"}, page


def test_nothing_is_asked_of_another_host(site):
    asked = [(page, url) for page in site.rglob("*.html") for url in read(page).fetched]
    asked += [(sheet, url) for sheet in site.rglob("*.css") for url in urls(sheet.read_text(encoding="utf-8"))]
    assert len(asked) > 100
    for place, url in asked:
        if not url.startswith(("data:", "#")):
            assert not urlsplit(url).netloc and not urlsplit(url).scheme, f"{place}: {url}"
            root = (
                site if place.name == "404.html" else place.parent
            )  # shown for any address: its paths begin at the root
            url = unquote(urldefrag(url).url.split("?")[0])
            assert (root / (url.lstrip("/") if root == site else url)).is_file(), f"{place}: {url}"
    for page in site.rglob("*.html"):  # for which the theme would fetch a program
        assert 'class="mermaid"' not in page.read_text(encoding="utf-8"), page


def test_every_link_leads_somewhere(site):
    broken, count = [], 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # whose links are those of a server's root
            continue
        for link in read(page).links:
            if urlsplit(link).scheme or urlsplit(link).netloc:
                continue
            url, anchor = urldefrag(link)
            target = (page.parent / unquote(url)).resolve() if url else page
            target = target / "index.html" if target.is_dir() else target
            count += 1
            if not target.is_file() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in read(target).ids
            ):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert count > 1000
    assert not broken, "\n".join(broken)


INSTEAD = {"study": "STUDY.yaml", "shell": "bash|zsh|fish"}
"""What stands for settings that are given without their names, where it is not the name."""


def flag(field: dataclasses.Field) -> str:
    return "--" + field.name.replace("_", "-")


def test_the_reference_has_every_verb_option_and_method(site):
    page = read(site / "reference" / "commands.html")
    for verb, (module, settings, *_) in VERBS.items():
        assert f"unmask-{verb.replace(' ', '-')}" in page.ids, verb
        for field in dataclasses.fields(getattr(importlib.import_module(f"unmask.verbs.{module}"), settings)):
            typed = {flag(field), field.name.upper(), INSTEAD.get(field.name, flag(field))}
            assert any(word.startswith(one) for one in typed for word in page.code), f"{verb}: {field.name}"
    for name, method in METHODS.items():
        assert f"unmask-pretrain-{name}" in page.ids, name
        for field in dataclasses.fields(method.Settings):
            assert any(word.startswith(flag(field)) for word in page.code), f"{name}: {field.name}"
    face = read(site / "reference" / "python.html")
    assert not {f"unmask.{name}" for name in unmask.__all__} - face.ids
    assert "unmask.methods.method.Method.forward" in read(site / "reference" / "parts.html").ids


def test_lists_and_tables_are_seen_as_such(site):
    """On a forge they may follow a paragraph at once; here a blank line must stand between."""
    for page in site.rglob("*.html"):
        for paragraph in re.findall("<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"^ *(\||[-*] |```)", paragraph, re.MULTILINE), f"{page}: {paragraph}"


def test_equations_are_mathml(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page
        for equation in re.findall(
            "<math.*?</math>", text, re.DOTALL
        ):  # what the converter did not know stays as it was
            assert "\\" not in equation and "<mi>&</mi>" not in equation, f"{page}: {equation}"


def test_pages_open_in_a_browser(site, chromium):
    asked, errors = [], []
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route(re.compile(r"^(?!file:|data:|about:|blob:)"), lambda route: route.abort())
    for name in ("index.html", "methods/mae.html", "reference/parts.html"):
        page.goto((site / name).as_uri())
        assert page.locator("h1").first.is_visible()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} is {wide} pixels wide on a phone: what is wide must scroll in a box of its own"
    page.goto((site / "index.html").as_uri() + "?q=effective+rank")  # the search, without a server
    page.locator(".md-search-result__item").first.wait_for(state="attached", timeout=20_000)
    page.close()
    assert not errors
    assert not [url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:"))]
