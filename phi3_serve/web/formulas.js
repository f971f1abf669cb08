// Formulas in TeX. KaTeX is loaded when the first one is shown; until then its text is.

import {element} from "./elements.js";

const OPTIONS = {strict: "ignore", trust: false, maxExpand: 1000, maxSize: 50};  // macros, em

let katex = null;

/** The place of a formula in HTML, for the renderer of Markdown. */
export function formula(tex, isDisplayed) {
  const text = tex.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return isDisplayed ? `<div class="formula displayed">${text}</div>\n` : `<span class="formula">${text}</span>`;
}

/** Typesets the formula whose text `place` has. */
export async function typeset(place) {
  if (place.classList.contains("displayed")) Object.assign(place, {tabIndex: 0, role: "region", ariaLabel: "Formula"});  // it scrolls
  if (!katex) katex = (await import("./vendor/katex.js")).default;
  const tex = place.textContent;
  try {
    katex.render(tex, place, {...OPTIONS, displayMode: place.classList.contains("displayed")});
    // The policy blocks the style attributes of a few parts; what a script sets it does not block.
    place.querySelectorAll("[style]").forEach(part => { part.style.cssText = part.getAttribute("style") });
  } catch (error) {
    place.replaceChildren(element("code", {textContent: tex, title: error.message}));
  }
}
