// Elements of the page, found or made.

export const $ = id => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function button(label, act, properties = {}) {
  return element("button", {type: "button", textContent: label, onclick: act, ...properties});
}

/** `act`, done at most once for each picture of the screen. */
export function oncePerFrame(act) {
  let isPlanned = false;
  return () => {
    if (!isPlanned) requestAnimationFrame(() => { isPlanned = false; act() });
    isPlanned = true;
  };
}

export function isAtEnd(scrolled) {
  return scrolled.scrollHeight - scrolled.scrollTop - scrolled.clientHeight < 60;  // pixels
}
