// Code of an answer: in colours, with its language and a button that copies it.

import hljs from "./vendor/highlight.js";
import {copy} from "./clipboard.js";
import {button, element} from "./elements.js";

/** `code` as HTML; empty if the language is not known. */
export function highlighted(code, language) {
  if (!hljs.getLanguage(language)) return "";
  return hljs.highlight(code, {language, ignoreIllegals: true}).value;
}

/** Puts `pre` under a bar with its language and the button. */
export function putUnderBar(pre) {
  const code = pre.querySelector("code");
  const language = /(?:^|\s)language-(\S+)/.exec(code.className)?.[1] ?? "";
  const bar = element("div", {className: "code-bar"}, element("span", {textContent: language}),
    button("Copy", event => copy(code.textContent, event.target), {ariaLabel: "Copy the code"}));
  Object.assign(pre, {tabIndex: 0, role: "region", ariaLabel: language ? "Code in " + language : "Code"});  // it scrolls
  const block = element("div", {className: "code"}, bar);
  pre.replaceWith(block);
  block.append(pre);
}
