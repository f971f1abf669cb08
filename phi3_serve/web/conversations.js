// The conversations that this browser keeps, and which of them is shown.
//
// A conversation is {id, title, begun, turns}. The turn of a person is {role: "user", content}. That of a model is
// {role: "assistant", state, request, answers: [{content, tokens}], chosen, figures, trouble}: `request` is what gave the
// answers, without its messages; `chosen` is the index of the answer that the conversation goes on with; a token is
// [text, logprob, [[text, logprob] of the likeliest]].

import {onChangeElsewhere, read, readAll, remove, write} from "./storage.js";

const NAME = "conversation.";
const TITLE = 60;  // characters

let all = load();
let currentId = read("current");
let deleted = null;
let changed = () => {};

/** Calls `act` after each change; its argument tells whether the conversation that is shown is another one, or has other turns. */
export function onChange(act) { changed = act }

export const current = () => all.find(conversation => conversation.id === currentId) ?? null;

export const lastDeleted = () => deleted;

/** The conversations with `words` in their title or text, the newest first. */
export function found(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return all.filter(conversation => {
    const text = [conversation.title, ...conversation.turns.map(allText)].join("\n").toLowerCase();
    return wanted.every(word => text.includes(word));
  });
}

/** What `turn` adds to the conversation. */
export function said(turn) {
  return turn.role === "user" ? turn.content : turn.answers[turn.chosen]?.content ?? "";
}

const allText = turn => turn.role === "user" ? turn.content : turn.answers.map(answer => answer.content).join("\n");

export function begin(text) {
  const id = newId();
  all.unshift({id, title: titleOf(text), begun: Date.now(), turns: []});
  show(id);
  return current();
}

const newId = () => crypto.randomUUID?.() ?? String(Date.now() + Math.random());  // none on a page by plain HTTP

export function show(id) {
  currentId = id;
  write("current", id);
  changed(true);
}

/** False if the browser could not keep it. */
export function save(conversation) {
  return !all.includes(conversation) || write(NAME + conversation.id, conversation);
}

export function rename(conversation, title) {
  conversation.title = titleOf(title) || conversation.title;
  save(conversation);
  changed(false);
}

export function forget(conversation) {
  all = all.filter(other => other !== conversation);
  deleted = conversation;
  remove(NAME + conversation.id);
  if (conversation.id === currentId) show(null);
  else changed(false);
}

export function undoForget() {
  all = sorted([...all, deleted]);
  save(deleted);
  const {id} = deleted;
  deleted = null;
  show(id);
}

export function dismissDeleted() {
  deleted = null;
  changed(false);
}

/**
 * Adds `conversations` that are not here yet. One that is here with other turns stays, and the other comes beside it.
 * Gives how many were added, how many were here, and whether the browser could keep all.
 */
export function add(conversations) {
  const isHere = ({id, ...content}) => all.some(({id: _, ...other}) => JSON.stringify(other) === JSON.stringify(content));
  const added = conversations.filter(one => !isHere(one));
  for (const one of added) {
    if (all.some(other => other.id === one.id)) one.id = newId();
    all.push(one);
  }
  all = sorted(all);
  const areKept = added.map(save).every(Boolean);
  changed(false);
  return {added: added.length, here: conversations.length - added.length, areKept};
}

function titleOf(text) { return text.trim().replace(/\s+/g, " ").slice(0, TITLE) }

function sorted(conversations) { return conversations.sort((one, other) => other.begun - one.begun) }

function load() {
  const kept = sorted(readAll(NAME));
  kept.flatMap(conversation => conversation.turns).filter(turn => turn.state === "running").forEach(turn => { turn.state = "interrupted" });
  return kept;
}

onChangeElsewhere(name => {
  if (!name.startsWith(NAME)) return;
  const shown = current(), isShown = name === NAME + shown?.id;
  all = load().map(conversation => conversation.id === shown?.id && !isShown ? shown : conversation);
  changed(isShown);
});
