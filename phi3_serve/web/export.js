// Conversations as files.

import {element} from "./elements.js";
import {madeBy} from "./answer.js";

export function exportAsMarkdown(conversation) {
  const turns = conversation.turns.map(turn => turn.role === "user" ? `## You\n\n${turn.content}` : answered(turn));
  download(fileName(conversation.title, "md"), "text/markdown", [`# ${conversation.title}`, ...turns].join("\n\n") + "\n");
}

export function exportAsJson(conversations, name) {
  download(fileName(name, "json"), "application/json", JSON.stringify(conversations, null, 2) + "\n");
}

function answered(turn) {
  const answers = turn.answers.map(({content}, at) => turn.answers.length > 1 ? `### Answer ${at + 1}\n\n${content}` : content);
  return [`## ${turn.request?.model ?? "The model"}`, ...answers, `*${[madeBy(turn), turn.figures].filter(Boolean).join(" · ")}*`].join("\n\n");
}

function fileName(title, ending) {
  return (title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation") + "." + ending;
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], {type}));
  element("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);  // milliseconds; the browser may still read it
}
