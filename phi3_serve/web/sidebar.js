// The list of conversations: search, and for each its name, export and deletion.

import * as conversations from "./conversations.js";
import {$, button, element} from "./elements.js";
import {exportAsJson, exportAsMarkdown} from "./export.js";
import {conversationsIn} from "./import.js";

let chosen = null;  // the conversation that the menu belongs to
let renamed = null;  // the one whose name is being written

export function drawSidebar() {
  if (renamed && $("talks").querySelector("input")) return;  // its writer goes on
  const shown = conversations.found($("search").value), isSearching = $("search").value.trim() !== "";
  $("talks").replaceChildren(...shown.map(line));
  $("nothing-found").hidden = !isSearching || shown.length > 0;
  drawUndo();
  const field = $("talks").querySelector("input");
  field?.focus();
  field?.select();
}

export function closeSidebar() { $("side").classList.remove("open") }

/** Connects the fixed parts. `leave` is called before another conversation is shown. */
export function setUpSidebar(leave) {
  const show = id => { leave(); conversations.show(id); closeSidebar(); $("prompt").focus() };
  $("new").onclick = () => show(null);
  $("talks").onclick = event => { if (event.target.className === "title") show(event.target.dataset.id) };
  $("search").oninput = drawSidebar;
  $("export-all").onclick = () => exportAsJson(conversations.found(""), "conversations");
  $("import").onclick = () => $("import-file").click();
  $("import-file").onchange = importFile;
  $("dismiss-imported").onclick = () => { $("imported").hidden = true };
  $("undo-delete").onclick = () => { leave(); conversations.undoForget(); $("talks").querySelector("[aria-current] .title")?.focus() };
  $("dismiss-delete").onclick = conversations.dismissDeleted;
  setUpMenu({
    "menu-rename": () => { renamed = chosen; drawSidebar() },
    "menu-markdown": () => exportAsMarkdown(chosen),
    "menu-json": () => exportAsJson([chosen], chosen.title),
    "menu-delete": () => {
      if (chosen === conversations.current()) leave();
      conversations.forget(chosen);
      $("undo-delete").focus();
    },
  });
}

async function importFile() {
  const [file] = $("import-file").files;
  if (!file) return;
  const tell = text => { $("imported").hidden = false; $("imported").firstElementChild.textContent = text };
  try {
    const {added, here, areKept} = conversations.add(conversationsIn(await file.text()));
    tell(`Imported ${added} of ${added + here} conversations from “${file.name}”.` + (here ? ` ${here} were here already.` : ""));
    if (!areKept) $("full").hidden = false;
  } catch (error) {
    tell(`“${file.name}” was not imported. ${error.message}`);
  }
  $("import-file").value = "";  // the same file can be chosen again
}

function setUpMenu(acts) {
  const items = [...$("menu").children];
  for (const item of items) item.onclick = () => { $("menu").hidePopover(); acts[item.id]() };
  $("menu").onkeydown = event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
  };
}

function line(conversation) {
  const isCurrent = conversation === conversations.current();
  const box = element("li", {}, ...(conversation === renamed ? [nameField(conversation)] : titleAndMenu(conversation)));
  if (isCurrent) box.setAttribute("aria-current", "true");
  return box;
}

function titleAndMenu(conversation) {
  const {id, title} = conversation;
  const opener = button("⋯", event => openMenu(conversation, event.currentTarget), {className: "more", ariaLabel: `Menu of “${title}”`});
  opener.setAttribute("aria-haspopup", "menu");
  const name = button(title, null, {className: "title", title, dir: "auto"});
  name.dataset.id = id;
  return [name, opener];
}

function openMenu(conversation, opener) {
  chosen = conversation;
  const {left, bottom} = opener.getBoundingClientRect();
  $("menu").showPopover();
  $("menu").style.left = Math.max(0, Math.min(left, innerWidth - $("menu").offsetWidth)) + "px";
  $("menu").style.top = Math.min(bottom, innerHeight - $("menu").offsetHeight) + "px";
  $("menu").firstElementChild.focus();
}

function nameField(conversation) {
  const field = element("input", {className: "name", dir: "auto", value: conversation.title, ariaLabel: "Name of the conversation", maxLength: 60});
  const end = isKept => {
    if (renamed !== conversation) return;  // it has ended
    renamed = null;
    if (isKept) conversations.rename(conversation, field.value);
    else drawSidebar();
    [...$("talks").querySelectorAll(".title")].find(title => title.dataset.id === conversation.id)?.focus();
  };
  field.onkeydown = event => {
    if (event.key === "Escape") { event.stopPropagation(); end(false) }
    if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); end(true) }  // it would press the title
  };
  field.onblur = () => { if (document.hasFocus()) end(true) };  // not when another window gets the focus
  return field;
}

function drawUndo() {
  const deleted = conversations.lastDeleted();
  $("deleted").hidden = !deleted;
  if (deleted) $("deleted-title").textContent = `Deleted “${deleted.title}”.`;
}
