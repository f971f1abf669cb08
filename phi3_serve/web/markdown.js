// Markdown as elements: CommonMark, GitHub's tables, task lists and strikethrough, code in colours, and formulas.
//
// HTML in an answer stays text. What the renderer makes passes a sanitizer, and the page's policy runs no script of it.

import DOMPurify from "./vendor/dompurify.js";
import MarkdownIt from "./vendor/markdown-it.js";
import {tasklist} from "./vendor/mdit-plugin-tasklist.js";
import {tex} from "./vendor/mdit-plugin-tex.js";
import {highlighted, putUnderBar} from "./code.js";
import {element} from "./elements.js";
import {formula, typeset} from "./formulas.js";

const FIRST_HEADING = 3;  // the page has the levels above

const SANITIZER = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "div", "em", "h3", "h4", "h5", "h6", "hr", "input", "li", "ol", "p", "pre", "s",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul", "#text"],
  ALLOWED_ATTR: ["align", "checked", "class", "disabled", "href", "start", "title", "type"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const markdown = new MarkdownIt({html: false, linkify: true, breaks: true, highlight: highlighted});
markdown.linkify.set({fuzzyLink: false});  // "main.py" is no link, "https://main.py" is
markdown.use(tex, {delimiters: "all", render: formula}).use(tasklist, {label: false});
markdown.core.ruler.push("headings", fitHeadings);
markdown.core.ruler.push("alignment", alignByAttribute);
markdown.renderer.rules.image = imageAsLink;

const keys = new WeakMap();  // element on the page → key of its block

/** `html` as elements, of which none can run anything. */
export const sanitized = html => DOMPurify.sanitize(html, SANITIZER);

/** `text` as elements. */
export function toFragment(text) {
  const fragment = new DocumentFragment();
  fragment.append(...blocksOf(text).map(block => block.made()));
  return fragment;
}

/** Shows `text` in `box`. Blocks that have not changed stay as they are, with what is selected in them. */
export function fill(box, text) {
  const blocks = blocksOf(text);
  let same = 0;
  while (same < blocks.length && box.children[same] && keys.get(box.children[same]) === blocks[same].key) same++;
  while (box.children.length > same) box.lastElementChild.remove();
  box.append(...blocks.slice(same).map(({key, made}) => {
    const shown = finished(made());
    keys.set(shown, key);
    return shown;
  }));
}

/** The blocks of `text`: each has a `key` that changes with what it shows, and is `made` into one element. */
function blocksOf(text) {
  const env = {}, tokens = markdown.parse(text, env), lines = text.split(/\r\n?|\n/), blocks = [];
  const references = JSON.stringify(env.references);  // a link may be defined behind its block
  let first = 0;
  tokens.forEach((token, at) => {
    if (token.level > 0 || token.nesting > 0) return;  // the block goes on
    const own = tokens.slice(first, at + 1), {tag, map} = own[0];
    first = at + 1;
    blocks.push({key: [tag, references, ...lines.slice(...map)].join("\n"),
      made: () => sanitized(markdown.renderer.render(own, markdown.options, env)).firstElementChild});
  });
  return blocks;
}

/** `block` with what Markdown has no word for: bars over code, typeset formulas, names of boxes, links to new tabs. */
function finished(block) {
  const root = element("div", {}, block);
  root.querySelectorAll("a").forEach(link => Object.assign(link, {target: "_blank", rel: "noopener noreferrer"}));
  root.querySelectorAll("input").forEach(box => { box.ariaLabel = box.checked ? "Completed task" : "Incomplete task" });
  root.querySelectorAll("table").forEach(table => {
    const frame = element("div", {className: "table", tabIndex: 0, role: "region", ariaLabel: "Table"});
    table.replaceWith(frame);
    frame.append(table);
  });
  root.querySelectorAll("pre").forEach(putUnderBar);
  root.querySelectorAll(".formula").forEach(typeset);
  return Object.assign(root.firstElementChild, {dir: "auto"});  // each block in the direction of its script
}

/** The levels of the headings that occur become those that follow the page's own, without gaps. */
function fitHeadings({tokens}) {
  const headings = tokens.filter(token => token.type.startsWith("heading_"));
  const levels = [...new Set(headings.map(token => token.tag))].sort();
  headings.forEach(token => { token.tag = "h" + Math.min(6, FIRST_HEADING + levels.indexOf(token.tag)) });
}

/** The policy permits no style attributes. */
function alignByAttribute({tokens}) {
  tokens.filter(token => token.type === "th_open" || token.type === "td_open").forEach(token => {
    const style = token.attrGet("style");
    if (style) token.attrs = [["align", style.replace("text-align:", "")]];
  });
}

/** An image would be fetched from elsewhere, so the page shows a link to it, or inside of a link its text. */
function imageAsLink(tokens, at, options, env, renderer) {
  const {escapeHtml} = markdown.utils, image = tokens[at];
  const text = escapeHtml(renderer.renderInlineAsText(image.children, options, env) || "image");
  const depth = tokens.slice(0, at).reduce((sum, token) => sum + (token.type === "link_open") - (token.type === "link_close"), 0);
  return depth ? text : `<a href="${escapeHtml(image.attrGet("src"))}">${text}</a>`;
}
