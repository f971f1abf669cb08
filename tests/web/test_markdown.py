"""Markdown of answers in a real Chromium: the examples of CommonMark and GFM, attacks, code and formulas."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.browser import Browser, answered, question

pytestmark = pytest.mark.browser
DATA = Path(__file__).parents[1] / "data" / "markdown"
COMMONMARK = json.loads((DATA / "commonmark-0.31.2.json").read_text(encoding="utf-8"))
GFM = json.loads((DATA / "gfm-0.29.json").read_text(encoding="utf-8"))
ATTACKS = [
    *json.loads((DATA / "xss-dompurify-3.4.14.json").read_text(encoding="utf-8")),
    *json.loads((DATA / "xss-markdown.json").read_text(encoding="utf-8")),
]

# Examples that the page shows otherwise, on purpose.
RAW_HTML = {21, 31, 201, 308, 309, 344, 475, 476, 477, 491, 494, 524, 536, 642, 643}  # it stays text
SECTIONS_OF_RAW_HTML = {"HTML blocks", "Raw HTML"}
FORMULAS = {12, 14}  # "\\(" and "\\[" begin one
OTHER_SCHEMES = {596, 598, 599, 601}  # text without a link: only web, mail and phone addresses are links
AUTOLINKS = {602, 608, 611, 612}  # GFM makes links of them
GFM_WITHOUT_SCHEME = {621, 622, 623, 624, 625, 626, 627}  # "www.example.com" is no link, as "main.py" is none
GFM_MAIL = {630}  # a "+" behind the "@"
GFM_RAW_HTML = {653}

# Gives [number, made, expected] of the examples that differ. Both trees are written down in the same way: names, the
# attributes that Markdown sets, and text. A line break is one whether it is an element or a character, headings have the
# levels of the page, and what is in an image is the text of a link.
COMPARE = """
const [examples, done] = arguments;
const KEPT = ["href", "title", "start", "align", "type"];
const BLOCKS = "p,ul,ol,li,blockquote,pre,hr,table,thead,tbody,tr,th,td,h3,h4,h5,h6";
function fitted(root) {
  const all = [...root.querySelectorAll("h1,h2,h3,h4,h5,h6")];
  const levels = [...new Set(all.map(h => h.tagName))].sort();
  for (const h of all) {
    const made = document.createElement("h" + Math.min(6, 3 + levels.indexOf(h.tagName)));
    made.append(...h.childNodes);
    h.replaceWith(made);
  }
  for (const image of root.querySelectorAll("img")) {
    const link = document.createElement("a");
    link.setAttribute("href", image.getAttribute("src"));
    link.textContent = image.alt || "image";
    image.replaceWith(...(image.closest("a") ? link.childNodes : [link]));
  }
  for (const del of root.querySelectorAll("del")) {
    const made = document.createElement("s");
    made.append(...del.childNodes);
    del.replaceWith(made);
  }
  const fragment = document.createDocumentFragment();
  fragment.append(...root.childNodes);
  return fragment;
}
function written(node) {
  if (node.nodeType === 3) return node.data;
  if (node.nodeName === "BR") return "\\n";
  const name = node.nodeName.toLowerCase();
  if (name === "code" && node.parentElement?.nodeName === "PRE") {
    const language = [...node.classList].filter(c => c.startsWith("language-")).join();
    return `<code ${language}>${node.textContent}</code>`;
  }
  const inner = [...node.childNodes].map(written).join("").replace(/\\n+/g, "\\n");
  if (!node.attributes) return inner.trim();
  const value = name => decodeURI(node.getAttribute(name).trim().replace(/%(?![0-9a-f]{2})/gi, "%25"));
  const attributes = KEPT.filter(name => node.hasAttribute(name)).map(name => ` ${name}=${value(name)}`).join("");
  return node.matches(BLOCKS) ? `\\n<${name}${attributes}>${inner.trim()}</${name}>\\n` : `<${name}${attributes}>${inner}</${name}>`;
}
const tidy = text => text.replace(/\\s*\\n\\s*/g, "\\n").replace(/[ \\t]+/g, " ").trim();
import(new URL("markdown.js", document.querySelector("script").src)).then(({toFragment}) => {
  const differing = [];
  for (const {number, markdown, html} of examples) {
    const made = tidy(written(toFragment(markdown)));
    const expected = tidy(written(fitted(new DOMParser().parseFromString(html, "text/html").body)));
    if (made !== expected) differing.push([number, made, expected]);
  }
  done(differing);
}).catch(error => done([[0, String(error.stack), ""]]));
"""


# Shows every text and gives what is suspicious in the page: elements and attributes that an answer has no use for, other
# schemes of links, requests to elsewhere, and whether anything ran.
ATTACK = """
const [texts, alsoAsHtml, done] = arguments;
for (const name of ["alert", "confirm", "prompt", "print"]) window[name] = () => { window.ran = true };
window.onerror = () => {};
const TAGS = new Set("A,BLOCKQUOTE,BR,BUTTON,CODE,DIV,EM,H3,H4,H5,H6,HR,INPUT,LI,OL,P,PRE,S,SPAN,STRONG,TABLE,TBODY,TD,TH,THEAD,TR,UL".split(","));
const SCHEMES = new Set(["http:", "https:", "ftp:", "mailto:", "tel:"]);
const suspicious = [];
function look(root, text, isFinished) {
  for (const element of root.querySelectorAll("*")) {
    const isFormula = element.closest(".formula > *");
    if (!TAGS.has(element.nodeName) && !isFormula) suspicious.push([text, "element", element.nodeName]);
    if (element.nodeName === "BUTTON" && !(isFinished && element.closest(".code-bar"))) suspicious.push([text, "button", ""]);
    if (element.nodeName === "A" && element.hasAttribute("href") && !SCHEMES.has(element.protocol))
      suspicious.push([text, "link", element.href]);
    for (const {name, value} of element.attributes) {
      const isOfPage = /^(class|href|title|start|align|type|checked|disabled|target|rel|role|tabindex|aria-label|dir)$/.test(name);
      if (/^on|src|action|xlink/i.test(name) || (!isOfPage && !isFormula)) suspicious.push([text, "attribute", name + "=" + value]);
      if (isFormula && /url\\(|javascript/i.test(name === "style" ? value : "")) suspicious.push([text, "style", value]);
    }
  }
}
import(new URL("markdown.js", document.querySelector("script").src)).then(async ({fill, sanitized}) => {
  await import(new URL("vendor/katex.js", document.querySelector("script").src));
  const shown = document.querySelector("#log");
  shown.replaceChildren();
  for (const text of texts) {
    const box = document.createElement("div"), bare = document.createElement("div");
    shown.append(box, bare);
    fill(box, text);
    if (alsoAsHtml) bare.append(sanitized(text));  // as if the renderer let HTML through
    look(bare, text, false);
  }
  await new Promise(resolve => setTimeout(resolve, 300));  // milliseconds, in which pictures would fail and formulas come
  for (const box of shown.children) look(box, box.textContent, true);
  for (const element of shown.querySelectorAll("*"))
    for (const name of ["mouseover", "focus", "toggle", "animationstart", "error", "load"]) element.dispatchEvent(new Event(name));
  const elsewhere = performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith(location.origin));
  done([suspicious, elsewhere, window.ran ?? false]);
}).catch(error => done([[["", "error", String(error.stack)]], [], false]));
"""


def differing(browser: Browser, examples: list[dict[str, Any]]) -> dict[int, Any]:
    """The examples that are not shown as the specification says."""
    with browser.without_policy():  # it forbids to parse the expected HTML, too
        browser.open()
        found: list[Any] = browser.driver.execute_async_script(COMPARE, examples)
    return {number: trees for number, *trees in found}


def test_the_examples_of_commonmark(browser: Browser) -> None:
    examples = [example for example in COMMONMARK if example["section"] not in SECTIONS_OF_RAW_HTML]
    assert len(examples) > 580
    found = differing(browser, examples)
    expected = RAW_HTML | FORMULAS | OTHER_SCHEMES | AUTOLINKS
    assert {number: trees for number, trees in found.items() if number not in expected} == {}
    assert set(found) == expected


def test_the_examples_of_gfm(browser: Browser) -> None:
    assert {example["extension"] for example in GFM} == {"table", "disabled", "strikethrough", "autolink", "tagfilter"}
    found = differing(browser, GFM)
    expected = GFM_WITHOUT_SCHEME | GFM_MAIL | GFM_RAW_HTML
    assert {number: trees for number, trees in found.items() if number not in expected} == {}
    assert set(found) == expected


def test_no_text_runs_anything_even_without_the_policy(browser: Browser) -> None:
    texts = [example["markdown"] for example in (*COMMONMARK, *GFM)] + ATTACKS
    assert len(texts) > 990
    with browser.without_policy():
        browser.open()
        suspicious, elsewhere, ran = browser.driver.execute_async_script(ATTACK, texts, True)
        assert suspicious == []
        assert elsewhere == []
        assert ran is False
        browser.run("document.querySelector('#log').innerHTML = '<img src=x onerror=\\'window.ran = true\\'>'")
        browser.until(lambda: browser.run("return window.ran"))  # what runs is noticed
    browser.complaints()


def test_the_policy_is_not_needed_for_any_text(browser: Browser) -> None:
    """With the policy, no text even tries: Chromium's console reports nothing."""
    browser.open()
    suspicious, elsewhere, ran = browser.driver.execute_async_script(ATTACK, ATTACKS, False)
    assert (suspicious, elsewhere, ran) == ([], [], False)
    assert browser.complaints() == []


def test_formulas_are_typeset(browser: Browser) -> None:
    text = r"""Inline $a_1$ costs $5 and $6, \(b^2\) and $\vec{x}$:

$$\int_0^1 x\,dx = \left(\begin{matrix}1\\2\\3\\4\\5\end{matrix}\right)$$

\[
E = mc^2
\]

A mistake: $\frac{1$"""
    browser.open_conversation(question(), answered(text))
    browser.until(lambda: len(browser.all(".formula .katex")) == 5)
    assert len(browser.all(".formula .katex-display")) == 2
    assert [a.get_attribute("textContent") for a in browser.all("annotation")][:2] == [
        "a_1",
        "b^2",
    ]  # for screen readers
    assert "costs $5 and $6," in browser.one(".turn.assistant .text p").text
    arrow = browser.run("return document.querySelector('.formula svg').getBoundingClientRect().width")
    assert 3 < arrow < 15  # pixels; the width is a style that KaTeX sets as an attribute
    assert browser.one(".formula > code").text == r"\frac{1"
    assert "expected" in (browser.one(".formula > code").get_attribute("title") or "")
    loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert any(name.endswith(".woff2") for name in loaded)
    assert all(name.startswith((browser.url, "data:")) for name in loaded)
    browser.complaints()


def test_katex_is_loaded_for_formulas_only(browser: Browser) -> None:
    browser.open_conversation(question(), answered("No formula."))
    loaded = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert any(name.endswith("markdown-it.js") for name in loaded)
    assert not any(name.endswith("katex.js") for name in loaded)


def test_code_has_colours_its_language_and_a_button_that_copies_it(browser: Browser) -> None:
    code = "def f(x):\n    return '<b>' + x  # a & b\n"
    browser.open_conversation(
        question(), answered(f"Code:\n\n```python\n{code}```\n\n```\nplain\n```\n\n```nolanguage\nx\n```")
    )
    assert [bar.text for bar in browser.all(".code-bar span")] == ["python", "", "nolanguage"]
    assert [e.text for e in browser.all(".hljs-keyword")] == ["def", "return"]
    browser.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    browser.all(".code-bar button")[0].click()
    browser.until(lambda: browser.all(".code-bar button")[0].text == "Copied")
    assert browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == code
    browser.until(lambda: browser.all(".code-bar button")[0].text == "Copy")


def test_what_has_not_changed_stays_while_an_answer_grows(browser: Browser) -> None:
    browser.open()
    kept = browser.driver.execute_async_script(
        """const done = arguments[0];
        import(new URL("markdown.js", document.querySelector("script").src)).then(({fill}) => {
          const box = document.createElement("div");
          fill(box, "# One\\n\\n```python\\nx = 1\\n```\\n\\nTwo");
          const before = [...box.children];
          fill(box, "# One\\n\\n```python\\nx = 1\\n```\\n\\nTwo and three\\n\\n- four");
          done([box.children.length, before.map((block, at) => block === box.children[at])]);
        })"""
    )
    assert kept == [4, [True, True, False]]


def test_links_open_elsewhere_and_images_are_links(browser: Browser) -> None:
    browser.open_conversation(question(), answered("[a](https://example.com) ![a picture](https://example.com/x.png)"))
    links = browser.all(".turn.assistant .text a")
    assert [(link.text, link.get_attribute("href")) for link in links] == [
        ("a", "https://example.com/"),
        ("a picture", "https://example.com/x.png"),
    ]
    assert {(link.get_attribute("target"), link.get_attribute("rel")) for link in links} == {
        ("_blank", "noopener noreferrer")
    }
    assert browser.all("img") == []
