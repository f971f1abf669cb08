// An answer token by token: the less likely a token was, the stronger its colour. Pointing at it, or going to it with the
// arrow keys, shows its probability and the likeliest others.

import {$, element} from "./elements.js";

const GAP = 6;  // pixels between a token and what is said of it

/** `tokens` as in conversations.js. */
export function tokenView(tokens) {
  const view = element("div", {className: "tokens", tabIndex: 0, role: "group", ariaLabel: "Tokens. The arrow keys go from one to the next."},
    ...tokens.map(([text, logprob]) => {
      const token = element("span", {className: "token", textContent: text});
      token.style.setProperty("--doubt", 1 - Math.exp(logprob));
      return token;
    }));
  let at = 0;
  const show = index => {
    at = Math.max(0, Math.min(tokens.length - 1, index));
    view.querySelector(".shown")?.classList.remove("shown");
    view.children[at].classList.add("shown");
    describe(tokens[at], view.children[at]);
  };
  view.onpointerover = event => { if (event.target.parentElement === view) show([...view.children].indexOf(event.target)) };
  view.onpointerleave = hide;
  view.onfocus = () => { if (view.matches(":focus-visible")) show(at) };
  view.onblur = hide;
  view.onkeydown = event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
    if (step) { event.preventDefault(); show(at + step) }
    if (event.key === "Escape" && !$("token").hidden) { event.preventDefault(); event.stopPropagation(); hide() }
  };
  return view;
}

function describe([text, logprob, others], token) {
  const isTaken = ([other, score]) => other === text || (score === logprob && other.trimStart() === text);  // an answer begins without a space
  const rows = others.some(isTaken) ? others : [[text, logprob], ...others];
  $("token").replaceChildren(element("table", {}, element("tbody", {}, ...rows.map(row =>
    element("tr", {className: isTaken(row) ? "taken" : ""}, element("td", {textContent: visible(row[0])}),
      element("td", {textContent: percent(row[1])}))))));
  (token.closest("dialog") ?? document.body).append($("token"));  // below an open dialog nothing is seen
  $("token").hidden = false;
  const {left, top, bottom} = token.getBoundingClientRect(), {offsetWidth, offsetHeight} = $("token");
  const isBelow = bottom + GAP + offsetHeight < innerHeight;
  $("token").style.left = Math.max(GAP, Math.min(left, innerWidth - offsetWidth - GAP)) + "px";
  $("token").style.top = (isBelow ? bottom + GAP : top - GAP - offsetHeight) + "px";
}

function hide() {
  $("token").hidden = true;
  document.querySelectorAll(".token.shown").forEach(token => token.classList.remove("shown"));
}

const visible = text => text.replaceAll(" ", "␣").replaceAll("\n", "⏎");

/** Two digits that count, also of what is nearly certain or nearly impossible. */
function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.01 ? "< 0.01 %" : share > 99.99 ? "> 99.99 %" : share.toFixed(share < 1 || share > 99 ? 2 : 1) + " %";
}
