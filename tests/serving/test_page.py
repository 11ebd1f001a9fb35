"""The page in Chromium over a live server: typing, removing, swapping, credits, keyboard, link."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, chromium
from live_server import Running, build_database, served

from rdm.database import RetrievalDatabase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
IDLE = "!!document.querySelector('.prompt .primary[type=submit]')"
FINISHED = f"""{IDLE} && document.querySelectorAll('.picture img').length === 4
  && document.querySelector('.facts p').innerText.includes('30 steps')"""
SEEN = "[...document.querySelectorAll('.tile img')].map((image) => image.src)"
PICTURES = "[...document.querySelectorAll('.picture img')].map((image) => image.src)"


@pytest.fixture(scope="module")
def page_server(
    tmp_path_factory: pytest.TempPathFactory,
    encoder_config: Path,
    database: RetrievalDatabase,
    model_folder: Path,
    encoded: Callable[..., bytes],
    tiny_encoder: str,
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    other = build_database(folder / "other", encoded, tiny_encoder, first=20)
    databases = {"birds": database, "paintings": other}
    with served(folder, encoder_config, databases, model_folder) as running:
        yield running.ready()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as open_tab:
        yield open_tab()


@pytest.fixture
def page(tab: Page, page_server: Running) -> Iterator[Page]:
    """A page that nothing was asked of; whatever a test does, it asks no other origin."""
    tab.requests.clear()
    tab.errors.clear()
    tab.size(1440, 900)
    tab.open("about:blank")
    tab.open(page_server.address)
    tab.until("document.querySelectorAll('.begin img').length === 6")
    yield tab
    own = (page_server.address, "data:", "about:", "blob:")
    assert [url for url in tab.requests if not url.startswith(own)] == []
    assert tab.errors == []


def ask(page: Page, text: str) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.until(FINISHED, 60)


def test_photographs_come_while_one_types_and_a_draft_is_refined(page: Page) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type("an o")
    page.until("document.querySelectorAll('.tile img').length === 4")
    page.type("wl")
    page.until(FINISHED, 60)
    page.until("document.querySelectorAll('.history .entry').length >= 4")
    assert page.run("location.hash").startswith("#r=")


def test_a_removed_photograph_leaves_and_before_and_after_are_compared(page: Page) -> None:
    ask(page, "an owl")
    first, before = page.run(SEEN)[0], page.run(PICTURES)
    page.run("document.querySelector('.tile').focus()")
    page.key("x")
    page.until("document.querySelector('.wipe output')?.innerText.includes('differ')", 60)
    page.until(FINISHED.replace("=== 4", "=== 8"), 60)
    assert first not in page.run(SEEN)
    shown = page.run(PICTURES)
    assert set(before) <= set(shown)
    page.key("]")
    assert page.run("document.getElementById('wipe').value") == "60"
    # It comes back by a key, and so does the picture.
    page.run("document.activeElement.blur()")
    page.key("u")
    page.until(f"{SEEN}.includes({first!r})")


def test_another_database_draws_with_the_same_seeds(page: Page) -> None:
    ask(page, "an owl")
    seeds = page.run("document.querySelector('.facts p').innerText.split(',')[0]")
    page.key("Tab")
    page.run("document.activeElement.blur()")
    page.key("d")
    page.until(f"{SEEN}.every((url) => url.includes('/paintings/'))")
    page.until(FINISHED, 60)
    assert page.run("document.querySelector('.facts p').innerText").startswith(seeds)

    page.run("document.querySelector('.switch label:last-child input').click()")
    page.until(f"document.querySelectorAll('.side .picture img').length === 8 && {IDLE}", 60)


def test_credits_name_every_photograph_and_can_be_copied(page: Page) -> None:
    ask(page, "an owl")
    page.run(
        "[...document.querySelectorAll('.toolbar button')]"
        ".find((one) => one.innerText.includes('Credits')).click()"
    )
    page.until("document.querySelectorAll('dialog .credits li').length === 4")
    assert page.run("document.querySelector('dialog').contains(document.activeElement)")
    page.key("Escape", 27)
    page.until("!document.querySelector('dialog')")


def test_a_link_brings_everything_back(page: Page, page_server: Running) -> None:
    ask(page, "a red flower")
    link, seen = page.run("location.href"), page.run(SEEN)
    page.open("about:blank")
    page.open(link)
    page.until(FINISHED, 60)
    assert page.run("document.getElementById('prompt').value") == "a red flower"
    assert page.run(SEEN) == seen


def test_the_keyboard_is_listed_and_letters_can_be_switched_off(page: Page) -> None:
    page.run("document.activeElement.blur()")
    page.key("?")
    page.until("document.querySelectorAll('.keys kbd').length > 10")
    page.run("document.querySelector('dialog input[type=checkbox]').click()")
    page.key("Escape", 27)
    page.until("!document.querySelector('dialog')")
    page.key("/")
    assert page.run("document.activeElement.id") != "prompt"


def test_an_error_says_what_and_how_and_keeps_what_was_typed(page: Page) -> None:
    ask(page, "an owl")
    for _ in range(7):  # of eight photographs: one has too few patches
        first = page.run(SEEN)[0]
        page.run("document.querySelector('.tile .actions button:last-child').click()")
        page.until(f"!{SEEN}.includes({first!r}) || !!document.querySelector('.problem')")
    page.until("!!document.querySelector('.problem')", 60)
    assert page.run("document.querySelector('.problem').getAttribute('role')") == "alert"
    assert page.run("document.getElementById('prompt').value") == "an owl"
    page.errors.clear()  # Chromium logs every answer of 422


@pytest.mark.parametrize("width", [320, 360, 768, 1440])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.size(width, 800)
    ask(page, "an owl")
    assert page.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_what_is_behind_them(page: Page, dark: bool) -> None:
    page.size(1440, 900, dark=dark)
    ask(page, "an owl")
    assert page.run(_WEAK) == []


def test_every_control_has_a_name_and_room_for_a_finger(page: Page) -> None:
    ask(page, "an owl")
    nameless = page.run(
        "[...document.querySelectorAll('button, input, a')].filter((one) => !(one.innerText"
        " || one.ariaLabel || one.labels?.length || one.querySelector('img[alt]')?.alt)"
        " && !one.closest('[aria-hidden]') && !one.ariaHidden).map((one) => one.outerHTML)"
    )
    assert nameless == []
    small = page.run(
        "[...document.querySelectorAll('button, input:not([type=radio]):not(.hidden)')].filter("
        "(one) => { const box = one.getBoundingClientRect(); return box.width"
        " && Math.min(box.width, box.height) < 24; }).map((one) => one.outerHTML)"
    )
    assert small == []


# Texts of a contrast under 4.5 to the color behind them, by WCAG's formula.
_WEAK = """(() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = numbers(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const node of document.querySelectorAll('#app *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || node.closest('.hidden, .skip, :disabled') || !node.offsetParent) continue;
    const [a, b] = [light(numbers(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push(`${node.className} ${node.innerText} ${ratio.toFixed(2)}`);
  }
  return weak;
})()"""
