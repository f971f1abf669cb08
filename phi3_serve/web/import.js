// Conversations from a file that this page has exported as JSON.

const STATES = ["whole", "stopped", "failed", "interrupted"];

/** The conversations in `text`. Throws an error that says what is wrong, and where. */
export function conversationsIn(text) {
  let list;
  try { list = JSON.parse(text) } catch { throw new Error("It is no JSON. The page imports what “Export all” and “Export as JSON” write.") }
  if (!Array.isArray(list)) throw new Error("It is no list of conversations. The page imports what “Export all” and “Export as JSON” write.");
  return list.map((given, at) => conversation(given, `Conversation ${at + 1}`));
}

function conversation(given, place) {
  check(isObject(given), place, "must be an object");
  const {id, title, begun, turns} = given;
  check(isText(id) && id, place, "`id` must be a text");
  check(isText(title), place, "`title` must be a text");
  check(Number.isFinite(begun), place, "`begun` must be a number: milliseconds since 1970");
  check(Array.isArray(turns), place, "`turns` must be a list");
  return {id, title, begun, turns: turns.map((turn, at) => turnOf(turn, `${place}, turn ${at + 1}`))};
}

function turnOf(given, place) {
  check(isObject(given), place, "must be an object");
  if (given.role === "user") {
    check(isText(given.content), place, "`content` must be a text");
    return {role: "user", content: given.content};
  }
  check(given.role === "assistant", place, "`role` must be “user” or “assistant”");
  const {role, request, answers, chosen, figures, trouble} = given;
  const state = given.state === "running" ? "interrupted" : given.state;
  check(STATES.includes(state), place, `\`state\` must be one of ${STATES.join(", ")}`);
  check(request === null || isRequest(request), place, "`request` must have `model`, `system` and `generate_kwargs`");
  check(Array.isArray(answers) && answers.length && answers.every(isAnswer), place, "`answers` must be a list of answers with `content`");
  check(Number.isInteger(chosen) && chosen >= 0 && chosen < answers.length, place, `\`chosen\` must be from 0 to ${answers.length - 1}`);
  check(isText(figures) && isText(trouble), place, "`figures` and `trouble` must be texts");
  return {role, state, request, answers: answers.map(({content, tokens}) => tokens ? {content, tokens} : {content}), chosen, figures, trouble};
}

function check(isRight, place, must) {
  if (!isRight) throw new Error(`${place}: ${must}.`);
}

const isText = value => typeof value === "string";

const isObject = value => typeof value === "object" && value !== null && !Array.isArray(value);

const isRequest = value => isObject(value) && isText(value.model) && isText(value.system) && isObject(value.generate_kwargs);

const isAnswer = value => isObject(value) && isText(value.content) && (value.tokens === undefined || isList(value.tokens, isToken));

const isToken = value => isScored(value) && isList(value[2], isScored);

const isScored = value => Array.isArray(value) && isText(value[0]) && Number.isFinite(value[1]);

const isList = (value, isItem) => Array.isArray(value) && value.every(isItem);
