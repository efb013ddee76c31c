"""The page at /ui, as a browser shows it over a real server."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

SERVE_FLAGS = ("--device-memory", "32MiB")
PATIENCE_MS = 60_000
PROMPT = "How many orders are in Berlin?"
CHROMIUM = shutil.which("chromium")
# With the twelve of the demonstration ten thousand, the most that are listed.
MANY = 9_988

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: see requirements/system.sh"),
]
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A container's user may be root and its /dev/shm small.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, server: Any) -> Iterator[Page]:
    """The page, live. Whatever the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda r: None if r.url.startswith(server.url) else complaints.append(r.url),
    )
    opened.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))"
    )
    opened.goto(f"{server.url}/ui")
    expect(opened.locator("#status")).to_have_text("live")
    yield opened
    expected = [text for text in complaints if "404" in text]
    assert [text for text in complaints if text not in expected] == []
    context.close()


def generated(server: Any, adapter: str | None) -> str:
    parameters = {"max_new_tokens": 64, **({"adapter_id": adapter} if adapter else {})}
    body = {"inputs": PROMPT, "parameters": parameters}
    reply = httpx.post(f"{server.url}/generate", json=body, timeout=60)
    text: str = reply.json()["generated_text"]
    return text


def tile(page: Page, name: str) -> Any:
    return page.locator(f'.tile[data-name="{name}"]')


def test_an_adapter_that_nobody_asked_for_comes_from_its_source_to_the_device(page: Page) -> None:
    expect(tile(page, "redact")).to_have_attribute("data-tier", "absent")
    page.evaluate(
        """() => {
            window.tiers = [];
            const note = (node) => window.tiers.push(node.dataset.tier);
            const node = document.querySelector('.tile[data-name="redact"]');
            new MutationObserver(() => note(node)).observe(node, {attributeFilter: ['data-tier']});
        }"""
    )
    page.fill("#prompt", "Call Ida at 555-1234.")
    page.fill("#adapter", "redact")
    page.click("#run")
    expect(tile(page, "redact")).to_have_attribute("data-tier", "device")
    # It may pass a tier between two snapshots, and never goes back.
    tiers = page.evaluate("window.tiers")
    assert tiers == sorted(tiers, key=["absent", "disk", "host", "device"].index)
    lines = page.locator("#log li", has_text="redact")
    expect(lines.filter(has_text="paged in to the device")).to_have_count(1)
    expect(lines.filter(has_text="fetched to disk")).to_have_count(1)
    expect(page.locator("#l-adapters")).not_to_have_text("0")


def test_base_and_adapter_answer_side_by_side_as_they_do_without_the_page(
    page: Page, server: Any
) -> None:
    tile(page, "sql").click()
    expect(page.locator("#adapter")).to_have_value("sql")
    page.evaluate(
        """() => {
            window.grew = [0, 0];
            document.querySelectorAll('.pane pre').forEach((pane, index) =>
                new MutationObserver(() => { window.grew[index] += 1; })
                    .observe(pane, {childList: true, characterData: true, subtree: true}));
        }"""
    )
    page.fill("#prompt", PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#pane-base")).to_have_attribute("data-state", "done")
    expect(page.locator("#pane-adapter")).to_have_attribute("data-state", "done")
    shown = [page.locator(f"#pane-{name} pre").text_content() for name in ("base", "adapter")]
    assert shown == [generated(server, None), generated(server, "sql")]
    assert shown[0] != shown[1]
    assert all(grew > 1 for grew in page.evaluate("window.grew")), "the text came all at once"


def test_a_refusal_is_shown_as_the_server_says_it(page: Page, server: Any) -> None:
    body = {"prompt": "x", "model": "no-such-adapter"}
    said = httpx.post(f"{server.url}/v1/completions", json=body).json()["error"]["message"]
    page.fill("#prompt", "x")
    page.fill("#adapter", "no-such-adapter")
    page.click("#run")
    expect(page.locator("#pane-adapter .tally")).to_have_text(f"404 {said}")
    expect(page.locator("#pane-base")).to_have_attribute("data-state", "done")
    expect(page.locator("#log code").first).to_have_text("adapter_not_found")


def test_a_generation_is_stopped_by_a_key(page: Page, server: Any) -> None:
    # Any token is as likely as any other, the end token too: a text may end before the key comes.
    page.fill("#tokens", "400")
    page.fill("#temperature", "100")
    page.fill("#prompt", PROMPT)
    pane = page.locator("#pane-base")
    before = server.metric("adex_cancelled_sequences_total")
    for _ in range(20):
        page.click("#run")
        expect(page.locator("#pane-base pre")).not_to_be_empty()
        page.locator("#prompt").press("Escape")
        expect(pane).to_have_attribute("data-state", re.compile("stopped|done"))
        if pane.get_attribute("data-state") == "stopped":
            break
    expect(pane).to_have_attribute("data-state", "stopped")
    expect(page.locator("#batch-count")).to_have_text("idle")
    assert server.metric("adex_cancelled_sequences_total") == before + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_everything_one_can_use_has_a_name(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button')]
            .filter(e => !e.labels?.length && !e.textContent.trim()).map(e => e.outerHTML)"""
    )
    assert nameless == []


def test_a_lost_worker_is_seen_and_so_is_its_return(page: Page, server: Any) -> None:
    os.kill(server.worker_pid(), signal.SIGKILL)
    expect(page.locator("#status")).to_have_text("no worker")
    expect(page.locator("#log .worker_lost").first).to_be_visible()
    expect(page.locator("#status")).to_have_text("live")
    assert page.locator("#log li").first.get_attribute("class") is not None


def test_ten_thousand_registered_adapters_leave_the_page_light(page: Page, server: Any) -> None:
    config = (server.adapter_root / "sql" / "adapter_config.json").read_bytes()
    for number in range(MANY):
        folder = server.adapter_root / f"many-{number:05}"
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes(config)
    listed = page.locator('[data-tier="absent"] .fill')
    expect(listed).to_contain_text(f"{MANY + 12:,} listed")
    assert page.locator(".tile").count() < 300
    page.fill("#adapter", "many-099")
    expect(page.locator("#adapters option").first).to_have_attribute("value", "many-09900")
    assert page.locator("#adapters option").count() == 50
    with httpx.stream("GET", f"{server.url}/ui/feed", timeout=60) as response:
        line = next(response.iter_lines())
    assert len(line) < 100_000
    assert json.loads(line.removeprefix("data: "))["source"]["count"] == MANY + 12
    page.fill("#adapter", "sql")
    page.fill("#prompt", PROMPT)
    page.click("#run")
    expect(tile(page, "sql")).to_have_attribute("data-tier", "device")
    expect(page.locator("#pane-adapter")).to_have_attribute("data-state", "done")
