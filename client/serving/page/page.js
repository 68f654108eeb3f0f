// One user's profile. The token stays in this page's memory; all text goes in as text and never as markup.
"use strict";

const part = name => document.getElementById(name);
let token = "";
let facts = null;
let columns = {row: {}, events: {}};
let asked = null;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

async function call(path, body) {
  const headers = {Authorization: `Bearer ${token}`};
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body)});
  const answer = await response.json();
  if (response.ok) return answer;
  const error = new Error(answer.error);
  error.status = response.status;
  error.problems = answer.problems || [];
  throw error;
}

function say(text, problems = []) {
  part("status").textContent = text;
  part("status").classList.toggle("failed", problems.failed === true);
  part("problems").replaceChildren(...problems.map(one => make("li", {}, `${one.field}: ${one.expected}`)));
  part("problems").hidden = problems.length === 0;
}

function fail(error) {
  const problems = error.problems || [];
  const shown = Object.assign([...problems], {failed: true});
  say(problems.length ? "The request cannot be read:" : error.message || "The server does not answer.", shown);
  for (const input of document.querySelectorAll("[data-field]")) {
    input.setAttribute("aria-invalid", String(problems.some(one => one.field === input.dataset.field)));
  }
  const first = document.querySelector('[aria-invalid="true"]');
  if (first) first.focus();
}

async function open() {
  try {
    facts = await call("federations");
  } catch (error) {
    token = "";
    part("enter").hidden = false;
    part("token").focus();
    return fail(error);
  }
  for (const one of Object.values(facts.federations)) {
    for (const [side, names] of [["row", one.columns.row], ["events", one.columns.events]]) {
      for (const [name, kind] of Object.entries(names)) {
        if (!(name in columns[side]) || columns[side][name] === "text") columns[side][name] = kind;
      }
    }
  }
  part("row").replaceChildren(...Object.entries(columns.row).map(([name, kind]) => {
    const label = make("label", {for: `row-${name}`}, name);
    return make("div", {}, label, field(`row-${name}`, kind));
  }));
  const names = Object.keys(columns.events);
  part("history").hidden = names.length === 0;
  const heads = names.map(name => make("th", {scope: "col"}, name));
  part("event-names").replaceChildren(make("tr", {}, ...heads, make("th", {scope: "col"}, "Remove")));
  if (names.length) add();
  part("models").replaceChildren(...Object.entries(facts.federations).map(model));
  for (const name of ["ask", "cards"]) part(name).hidden = false;
  part("enter").hidden = true;
  say("");
  const first = part("row").querySelector("input") || part("add");
  first.focus();
}

function field(id, kind) {
  const input = make("input", {id, "data-kind": kind, autocomplete: "off", spellcheck: "false"});
  if (kind === "number") input.inputMode = "decimal";
  if (kind === "time") input.placeholder = "2026-03-31T12:30:00";
  if (kind === "vector") input.placeholder = "[0.5, -1.25]";
  return input;
}

function add() {
  const line = part("events").children.length + 1;
  const cells = Object.entries(columns.events).map(([name, kind]) => {
    const input = field("", kind);
    input.removeAttribute("id");
    input.dataset.name = name;
    input.setAttribute("aria-label", `${name} of event ${line}`);
    return make("td", {}, input);
  });
  const remove = make("button", {type: "button", "aria-label": `Remove event ${line}`}, "Remove");
  const row = make("tr", {}, ...cells, make("td", {}, remove));
  remove.addEventListener("click", () => { row.remove(); part("add").focus(); });
  part("events").append(row);
  return row;
}

// A number that is none goes as it was typed: the server's readers say what is wrong with it.
function cell(input) {
  const text = input.value.trim();
  if (text === "") return null;
  if (input.dataset.kind === "number") return Number.isFinite(Number(text)) ? Number(text) : text;
  if (input.dataset.kind !== "vector") return text;
  try { return JSON.parse(text); } catch { return text; }
}

function given() {
  if (!part("lines-side").hidden) {
    return part("lines").value.split("\n").filter(line => line.trim()).map((line, place) => {
      try { return JSON.parse(line); } catch {
        throw Object.assign(new Error(), {problems: [{field: `events[${place}]`, expected: "is not a JSON object"}]});
      }
    });
  }
  const found = [];
  for (const row of part("events").children) {
    const inputs = [...row.querySelectorAll("input")];
    if (inputs.every(input => !input.value.trim())) continue;
    for (const input of inputs) input.dataset.field = `events[${found.length}].${input.dataset.name}`;
    found.push(Object.fromEntries(inputs.map(input => [input.dataset.name, cell(input)])));
  }
  return found;
}

function request() {
  const row = Object.fromEntries(Object.keys(columns.row).map(name => {
    const input = part(`row-${name}`);
    input.dataset.field = `row.${name}`;
    return [name, cell(input)];
  }));
  return {row, events: given()};
}

const percent = value => `${(100 * value).toFixed(1)} %`;

function entry([name, said]) {
  const task = facts.federations[name].task, prediction = said.prediction, body = [];
  for (const [key, value] of Object.entries(prediction)) {
    if (key === "probabilities") {
      for (const [label, share] of Object.entries(value)) {
        const bar = make("progress", {max: "1", value: String(share), "aria-label": `${label}: ${percent(share)}`});
        body.push(make("div", {class: "score"}, make("span", {}, label), bar, make("span", {class: "number"}, percent(share))));
      }
    } else if (typeof value === "number") {
      body.push(make("p", {class: "large"}, `${key}: ${value.toPrecision(4)}`),
        make("p", {class: "quiet"}, `in the range of ${task.low} to ${task.high}`));
    } else if (Array.isArray(value)) {
      const items = value.map(one => typeof one === "object" ? `${one.candidate}: ${one.score.toPrecision(3)}` : one);
      body.push(make("ol", {"aria-label": key}, ...items.map(text => make("li", {}, text))));
    } else {
      body.push(make("p", {class: "large"}, value));
    }
  }
  const review = facts.federations[name].review;
  if (said.decision) {
    const person = review && said.decision === review.decision;
    body.push(person ? make("p", {class: "review"}, "Left to a person: the model is not sure enough.")
      : make("p", {}, `Decided: ${said.decision}`));
    body.push(make("p", {class: "quiet"}, bandText(review)));
  }
  if (said.reply) body.push(make("p", {}, `Answer: ${said.reply}`));
  const which = `Adapter after round ${said.round}, ${said.adapter.slice(0, 12)}…`;
  return make("article", {"aria-label": name}, make("h3", {}, name), ...body, make("p", {class: "quiet"}, which));
}

function bandText(review) {
  if (!review) return "Every prediction is given; none is left to a person.";
  const parts = [];
  if (review.band) parts.push(`the positive label's probability is from ${review.band[0]} to ${review.band[1]}`);
  if (review.confidence > 0) parts.push(`the most likely label's is below ${review.confidence}`);
  const groups = Object.keys(review.thresholds || {});
  const by = groups.length ? ` The second label is decided from another probability for ${groups.join(", ")}.` : "";
  return (parts.length ? `A person decides where ${parts.join(", or ")}.` : "No prediction is left to a person.") + by;
}

function model([name, one]) {
  const promise = one.promise;
  const about = {
    Task: one.task.outputs.length <= 12 ? `${one.task.kind}: ${one.task.outputs.join(", ")}` : `${one.task.kind}, ${one.task.outputs.length} outputs`,
    Round: `${one.round} of ${one.rounds}`,
    Promise: `epsilon at most ${promise.epsilon}, delta ${promise.delta}, for each ${promise.unit} (${promise.adjacency}, ${promise.model}, ${promise.accountant})`,
    Review: bandText(one.review),
    Base: one.base,
    Card: one.card,
    Adapter: one.adapter,
  };
  const items = Object.entries(about).flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]);
  return make("article", {"aria-label": name}, make("h3", {}, name), make("dl", {}, ...items));
}

async function show(event) {
  event.preventDefault();
  try {
    say("Asking…");
    asked = request();
    const answer = await call("profile", asked);
    fail({problems: []});
    say("The profile is below.");
    part("profile").replaceChildren(...Object.entries(answer.profile).map(entry));
    part("explanation").replaceChildren();
    part("explain").hidden = !facts.explains;
    part("answer").hidden = false;
    part("answer").focus();
  } catch (error) {
    part("answer").hidden = true;
    fail(error);
  }
}

function explained([name, one]) {
  const events = one.parts.map(part => make("tr", {},
    make("td", {}, part.text), make("td", {class: "number"}, part.effect.toFixed(3))));
  const table = make("table", {}, make("caption", {}, `${name}, ${one.output}. ${one.note}`), make("thead", {},
    make("tr", {}, make("th", {scope: "col"}, "Event"), make("th", {scope: "col"}, "Effect"))), make("tbody", {}, ...events));
  return make("div", {class: "scroll", role: "region", tabindex: "0", "aria-label": name}, table);
}

async function explain() {
  try {
    part("explanation").replaceChildren("Asking…");
    const answer = await call("explain", asked);
    part("explanation").replaceChildren(...Object.entries(answer.explanation).map(explained));
  } catch (error) {
    part("explanation").replaceChildren();
    fail(error);
  }
}

function turn(lines) {
  if (lines === !part("lines-side").hidden) return;
  try {
    const events = given();
    if (lines) part("lines").value = events.map(one => JSON.stringify(one)).join("\n");
    else {
      part("events").replaceChildren();
      for (const one of events.length ? events : [{}]) {
        for (const input of add().querySelectorAll("input")) {
          const value = one[input.dataset.name];
          input.value = value == null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
        }
      }
    }
  } catch (error) { return fail(error); }
  part("lines-side").hidden = !lines;
  part("table-side").hidden = lines;
  part("as-lines").setAttribute("aria-pressed", String(lines));
  part("as-table").setAttribute("aria-pressed", String(!lines));
}

part("token-form").addEventListener("submit", event => {
  event.preventDefault();
  token = part("token").value.trim();
  open();
});
part("ask-form").addEventListener("submit", show);
part("add").addEventListener("click", () => add().querySelector("input").focus());
part("as-lines").addEventListener("click", () => turn(true));
part("as-table").addEventListener("click", () => turn(false));
part("explain").addEventListener("click", explain);
part("file").addEventListener("change", async event => {
  const [picked] = event.target.files;
  if (picked) part("lines").value = await picked.text();
});

const shown = new URLSearchParams(location.hash.slice(1)).get("token");
if (shown) {
  // Out of the address, and so out of the browser's history and of screenshots.
  history.replaceState(null, "", location.pathname);
  token = shown;
  open();
} else part("token").focus();
