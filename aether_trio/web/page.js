/** The page for people: one window of one person in one workspace. Wires the client, the model and the view. */

import { Client, topics } from "/client/aether.js";
import { Prompts } from "/demo/authority.js";
import { $, named } from "/demo/dom.js";
import { Conversations, Work, asPart, inOrder, isolated, newId, partsOf, readMessage, visible } from "/demo/model.js";
import { Tasks, asksPeople, hasEnded, mayAnswer, stateText, tooLong } from "/demo/tasks.js";
import * as view from "/demo/view.js";

const LOOK_AROUND_MS = 2000;
const REGISTRY_EVERY = 5; // looks
const LAST_TIME = "aether-page"; // who was here: in sessionStorage for a reload, in localStorage for the form
const KEPT_GONE = 50; // agents that are not here any more, in the list
const REGISTERED = 200;
const USUAL_SPECIFIER = "1";

let client = null;
let talks = null;
let prompts = null;
let board = null;
let work = new Work();
let here = new Map(); // agents that are connected, by topic
let seen = new Set(); // agents that were
let registered = new Map(); // what can be started, by implementation
let profiles = new Set(); // that an orchestrator starts
let people = [];
let mayLook = true;
let mayReadRegistry = true;
let known = false; // whether the agents were listed once
let chosen = "";

// -- what is shown

function agentOf(topic) {
  const { kind, name, specifier, workspace } = partsOf(topic);
  const unknown = !mayLook || client.state !== "open";
  const isHere = here.has(topic) && !unknown;
  const registration = kind === "agent" && workspace === client.workspace ? registered.get(name) : undefined;
  const start = board?.startOf(topic) ?? null;
  const starting = !isHere && start !== null && !hasEnded(start);
  const last = talks.of(topic).at(-1);
  const task = work.of(topic).find((one) => !one.ended) ?? null;
  const startable = Boolean(registration) && !unknown;
  const agent = { topic, kind, name, specifier, here: isHere, unknown, task, startable, starting };
  const failed = !isHere && start?.status === "FAILED" && (!last || start.createdAt?.getTime() >= last.at - 60_000) ? start : null;
  return {
    ...agent,
    note: noteOf(agent, registration, last, failed),
    greeting: greetingOf(agent, registration, failed),
    unread: talks.unread.get(topic) ?? 0,
    current: topic === chosen,
  };
}

function noteOf({ here: isHere, unknown, starting }, registration, last, failed) {
  if (starting) return ["Is being started…"];
  if (failed) return [`Could not be started: ${visible(failed.error, 80)}`];
  if (last) return [last.mine ? "You: " : "", named(last.text.slice(0, 200).replace(/\s+/g, " "), 80)];
  if (isHere) return ["Say hello"];
  if (unknown) return [""];
  if (registration) return registration.description ? [named(registration.description, 80)] : ["Starts when you write to it"];
  return ["Not here"];
}

function greetingOf({ name, here: isHere, unknown, starting, startable }, registration, failed) {
  if (unknown) return ["Nothing was said yet."];
  if (failed) return [named(name), ` could not be started: ${visible(failed.error, 500)}`];
  if (isHere) return ["Say hello to ", named(name), "."];
  if (starting) return [named(name), " is being started. What you write waits for it."];
  if (!startable) return [named(name), " is not here now. What you write waits for it."];
  const served = !registration.profile || profiles.has(registration.profile);
  if (served) return [named(name), " does not run. It starts when you write to it."];
  return [named(name), " does not run, and no orchestrator that starts it is connected. What you write waits for both."];
}

function emptyOf(agents) {
  if (chosen || board?.openId) return null;
  if (!known) return { title: "Looking around…", text: [""] };
  if (agents.some((agent) => agent.here || agent.startable)) {
    return { title: "Pick an agent", text: ["Everything it says shows up in all your windows."] };
  }
  const port = location.port ? location.host : `${location.hostname}:${location.protocol === "https:" ? 443 : 80}`;
  return {
    title: "No agent is here yet",
    text: ["No agent is connected in the workspace ", named(client.workspace), "."],
    start: `python docs/examples/chat_agent.py ${port} --workspace ${quoted(client.workspace)}`,
  };
}

function quoted(text) {
  return /^[\w@.:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Agents that can be started and of which there is none yet: one is offered, with the usual specifier. */
function offered(all) {
  const there = new Set([...all].map((topic) => partsOf(topic)).filter((one) => one.workspace === client.workspace).map(({ name }) => name));
  return [...registered.keys()].filter((name) => !there.has(name)).map((name) => topics.agent(client.workspace, name, USUAL_SPECIFIER));
}

/** What an agent works on: reports, and tasks of which it has not reported. */
function workOf(topic) {
  const tasks = board.of(topic);
  const reports = work.of(topic);
  const cards = reports.map((report) => cardOf(report, tasks.find((task) => task.taskId === report.taskId)));
  const silent = tasks.filter((task) => !reports.some((report) => report.taskId === task.taskId));
  const quiet = { steps: "", part: null, failed: false, ended: false };
  return [...cards, ...silent.map((task) => cardOf({ ...quiet, key: task.taskId, taskId: task.taskId, summary: task.type || "task" }, task))];
}

function cardOf(report, task) {
  const percent = report.part === null || report.part < 0 ? "" : `${Math.round(report.part * 100)} %`;
  const end = report.failed ? report.state : percent;
  if (!task || report.ended) return { ...report, state: end, open: task ? "Show" : "" };
  const answers = asksPeople(task) && mayAnswer(task.wait, client);
  const state = task.status === "RUNNING" ? end || "runs" : stateText(task);
  return { ...report, state, open: answers ? "Answer…" : "Show" };
}

function show({ jump = false } = {}) {
  if (!client || !talks) return;
  const all = new Set([...here.keys(), ...talks.agents(), ...seen.keys()]);
  if (chosen) all.add(chosen);
  for (const topic of offered(all)) all.add(topic);
  const agents = [...all].map(agentOf).sort((a, b) => b.here - a.here || inOrder(a.topic, b.topic));
  const note = !known ? "Looking around…" : !mayLook ? "This gateway does not say who is here." : agents.length ? "" : "No agent yet.";
  view.showAgents(agents, note);
  view.showPeople(people);
  board.show();
  view.showLayout(board.openId ? "task" : chosen ? "chat" : "list", emptyOf(agents));
  const unread = agents.reduce((sum, agent) => sum + agent.unread, 0) + board.waiting;
  document.title = `${unread ? `(${unread}) ` : ""}${isolated(chosen ? partsOf(chosen).name : client.workspace)} · aether`;
  if (board.openId) board.showOpen();
  if (!chosen) return;
  const agent = agentOf(chosen);
  view.showChatHead(agent);
  view.showWork(workOf(chosen));
  view.showLines(talks.of(chosen), agent, jump);
}

function choose(topic) {
  board.open("");
  chosen = topic;
  view.showTextNote("");
  if (topic) talks.unread.delete(topic);
  show({ jump: true });
  if (topic) $("text").focus({ preventScroll: true });
  else $("agents").querySelector("button")?.focus();
}

function openTask(taskId) {
  board.open(taskId);
  chosen = "";
  show();
  $("task-title").focus({ preventScroll: true });
}

function closeTask() {
  const taskId = board.openId;
  board.open("");
  show();
  const item = [...document.querySelectorAll("#waiting button, #task-list button")].find((one) => one.dataset.task === taskId);
  (item ?? $("agents").querySelector("button") ?? $("address-button")).focus();
}

// -- the connection

function bannerOf({ state, error, retryInMs }) {
  if (state === "closed") return { text: `This window has been disconnected: ${error?.message ?? "it was closed"}`, button: "Connect again", bad: true };
  if (state !== "reconnecting") return null;
  const when = retryInMs > 1500 ? `in ${Math.round(retryInMs / 1000)} s` : "now";
  const text = `No connection. Trying again ${when}. What you write is kept, and sent then.`;
  return { text, why: error?.message ?? "", button: "Try now" };
}

async function enter(userId, workspace, key) {
  view.showConnecting();
  const entering = new Client({
    userId,
    workspace,
    credentials: key ? { api_key: key } : {},
    storage: localStorage, // a new tab becomes a window whose tab is gone, with all that waits for it
  });
  entering.addEventListener("state", ({ detail }) => {
    if (client !== entering) return;
    view.showState(detail.state);
    view.showBanner(bannerOf(detail));
    show();
    if (detail.state !== "open") return;
    sendWhatIsOpen();
    lookAround();
  });
  try {
    await entering.open();
  } catch (error) {
    const needsKey = error.code === "UNAUTHENTICATED" || (Boolean(key) && error.code === "PERMISSION_DENIED");
    sessionStorage.removeItem(LAST_TIME);
    const unanswered = error.code === "UNAVAILABLE" ? "The gateway does not answer. Is it running?" : error.message;
    view.showWelcome(needsKey && !key ? "This gateway asks for a key." : unanswered, needsKey, error.message);
    return;
  }
  client = entering;
  const last = JSON.stringify({ userId, workspace });
  if (!key) sessionStorage.setItem(LAST_TIME, last);
  localStorage.setItem(LAST_TIME, last);
  client.addEventListener("message", ({ detail }) => hear(detail));
  client.addEventListener("progress", ({ detail }) => {
    if (detail.source === "gateway") return; // of the state of a task, not from its worker
    work.report(detail);
    show();
  });
  prompts = new Prompts(client, view.tellNews);
  view.showState(client.state);
  arrive();
  prompts.read();
}

/** Enters a workspace, the first one or another. */
function arrive() {
  talks = new Conversations(localStorage, client.userId, client.workspace);
  work = new Work();
  board?.close();
  board = new Tasks(client, work, { tell: view.tellNews, changed: show });
  looks = 0;
  mayReadRegistry = true;
  registered = new Map();
  here = new Map();
  seen = new Set();
  people = [];
  known = false;
  chosen = "";
  view.showApp(client);
  show();
  sendWhatIsOpen();
  lookAround();
}

function leave() {
  sessionStorage.removeItem(LAST_TIME);
  const leaving = client;
  prompts?.close();
  prompts = null;
  board?.close();
  board = null;
  client = null;
  talks = null;
  leaving?.close();
  view.showBanner(null);
  view.showWelcome();
}

// -- who is here

let looking = false;
let looks = 0;

async function lookAround() {
  if (looking || !client || client.state !== "open" || document.hidden) return;
  looking = true;
  const { workspace } = client;
  board?.look();
  if (looks % REGISTRY_EVERY === 0) readRegistry(workspace);
  looks += 1;
  try {
    const found = await client.sessions.list({ limit: 500 });
    if (client?.workspace !== workspace) return;
    take(found);
    mayLook = true;
  } catch (error) {
    if (["DISCONNECTED", "CLOSED", "TIMEOUT"].includes(error.code)) return;
    mayLook = false;
  } finally {
    looking = false;
  }
  known = true;
  show();
}

/** Reads which agents can be started; who may not is not asked again in this workspace. */
async function readRegistry(workspace) {
  if (!mayReadRegistry) return;
  try {
    const [{ agents }, orchestrators] = await Promise.all([client.agents.list({ limit: REGISTERED }), client.agents.orchestrators()]);
    if (client?.workspace !== workspace) return;
    registered = new Map(agents.map((one) => [one.implementation, one]));
    profiles = new Set(orchestrators.flatMap((one) => one.profiles));
    show();
  } catch (error) {
    if (error.code === "ERR_PERMISSION_DENIED") mayReadRegistry = false;
  }
}

function take(found) {
  const agents = new Map(found.filter((one) => one.type === "agent").map((one) => [one.identity, one]));
  if (known) {
    const said = (list, what) => list.map((topic) => [named(partsOf(topic).name), what]);
    const came = said([...agents.keys()].filter((topic) => !here.has(topic)), " is here");
    const left = said([...here.keys()].filter((topic) => !agents.has(topic)), " has left");
    const news = [...came, ...left];
    const many = `${came.length} agents have come, ${left.length} have left`;
    if (news.length > 5) view.tellNews(many);
    else if (news.length) view.tellNews(...news.flatMap((parts, at) => (at ? [", ", ...parts] : parts)));
  }
  seen = new Set([...agents.keys(), ...[...seen].filter((topic) => !agents.has(topic)).slice(0, KEPT_GONE)]);
  here = agents;
  const windows = new Map();
  for (const one of found.filter(({ type }) => type === "user")) {
    const name = one.identity.split("::")[1];
    windows.set(name, (windows.get(name) ?? 0) + 1);
  }
  people = [...windows].map(([name, count]) => ({ name, windows: count, me: name === client.userId }));
  people.sort((a, b) => b.me - a.me || inOrder(a.name, b.name));
}

// -- talking

function hear(message) {
  const { id, text, to, from, json } = readMessage(message);
  if (message.source.startsWith("us::")) {
    // A window of this person tells what it has sent, or what came to it alone; other people's messages are not shown.
    if (!message.source.startsWith(`us::${client.userId}::`)) return;
    if (to) talks.add(to, { id, text, mine: true });
    else if (from) hearAgent(from, { id, text, json: false });
  } else {
    if (message.topic === client.identity) tellOtherWindows(message.source, id, text);
    hearAgent(message.source, { id, text, json });
  }
  show();
}

function hearAgent(agent, line) {
  const isNew = talks.add(agent, { ...line, mine: false });
  if (!isNew || (agent === chosen && !document.hidden)) return;
  talks.unread.set(agent, (talks.unread.get(agent) ?? 0) + 1);
}

/** What came to this window alone is shown by this person's other windows as well. */
function tellOtherWindows(agent, id, text) {
  try {
    client.send(topics.userIn(client.userId, client.workspace), { id, text, from: agent }, { type: "EVENT" });
  } catch {
    // There is no room, or it is too long as JSON: it is shown here.
  }
}

function say(agent, text) {
  const line = { id: newId(), text, mine: true, state: "sending" };
  talks.add(agent, line);
  posted.add(line.id);
  post(agent, line);
  show({ jump: true });
}

async function post(agent, { id, text }) {
  const [from, lines] = [client, talks];
  const everywhere = topics.userIn(client.userId, client.workspace);
  // Any agent can read plain text. One that has answered with JSON knows `reply_to`, all windows of this person.
  const said = lines.speaksJson(agent) ? { id, text, reply_to: everywhere } : text;
  try {
    // To the other windows first: an answer comes on the same topic, behind it.
    const told = from.sendAndConfirm(everywhere, { id, text, to: agent }, { type: "EVENT" });
    await Promise.all([told, from.sendAndConfirm(agent, said, { type: "CHAT" })]);
    lines.mark(agent, id, "sent");
  } catch (error) {
    if (error.code === "CLOSED" || from.state === "closed") return; // it stays open, for the next time
    lines.mark(agent, id, "failed", error.message);
    const line = lines.find(agent, id);
    if (line) line.tooLong = /PAYLOAD_TOO_LARGE/.test(error.code);
  }
  show();
}

/**
 * What was not confirmed when this page was loaded or connected the last time. A second arrival has the same id. What was
 * said just now may be on its way from another window: it is looked at again a little later.
 */
const posted = new Set();
const ON_ITS_WAY_MS = 1000;

function sendWhatIsOpen() {
  if (!talks || client?.state !== "open") return;
  for (const [agent, line] of talks.open()) {
    if (posted.has(line.id)) continue;
    if (Math.abs(Date.now() - line.at) < ON_ITS_WAY_MS) { // a clock that was set back keeps no line for an hour
      setTimeout(sendWhatIsOpen, ON_ITS_WAY_MS);
      return;
    }
    posted.add(line.id);
    post(agent, line);
  }
}

// -- what the person does

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  for (const [field, what] of [["name", "A name"], ["workspace", "A workspace"]]) {
    const given = $(field).value.trim();
    const possible = asPart(given);
    if (given === possible) continue;
    $(field).value = possible; // to be entered as it is, or changed
    view.showWelcome(`${what} has no spaces here, and no *, > or ::, as it becomes part of an address. “${possible}” would do.`);
    $(field).focus();
    return;
  }
  const key = $("key").value;
  $("key").value = "";
  enter($("name").value.trim(), $("workspace").value.trim(), key);
});
$("leave").addEventListener("click", leave);
$("banner-button").addEventListener("click", () => {
  if (client?.state === "closed") {
    const { userId, workspace } = client;
    leave();
    enter(userId, workspace, "");
  } else client?.reconnectNow();
});
$("agents").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) choose(button.dataset.topic);
});
$("back").addEventListener("click", () => choose(""));
$("task-back").addEventListener("click", closeTask);
for (const id of ["waiting", "task-list", "tasks"]) {
  $(id).addEventListener("click", (event) => {
    const taskId = event.target.closest("button")?.dataset.task;
    if (taskId) openTask(taskId);
  });
}
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !chosen) return;
  const note = tooLong(text);
  view.showTextNote(note);
  if (note) {
    $("text").focus();
    return;
  }
  say(chosen, text);
  $("text").value = "";
  view.growComposer();
});
$("text").addEventListener("input", () => {
  view.showTextNote(tooLong($("text").value.trim()));
  view.growComposer();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("log").addEventListener("click", (event) => {
  const { again, edit } = event.target.dataset ?? {};
  const line = talks.find(chosen, again ?? edit);
  if (!line) return;
  if (edit) {
    $("text").value = line.text;
    view.growComposer();
    $("text").focus();
    return;
  }
  talks.mark(chosen, line.id, "sending");
  post(chosen, line);
  show();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("command").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("command"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
}
$("workspace-button").addEventListener("click", () => {
  $("workspace-error").hidden = true;
  $("other-workspace").value = client.workspace;
  $("workspace-dialog").showModal();
  $("other-workspace").select();
});
$("workspace-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const workspace = $("other-workspace").value.trim();
  try {
    await client.switchWorkspace(workspace);
  } catch (error) {
    $("workspace-error").textContent = error.message;
    $("workspace-error").hidden = false;
    return;
  }
  $("workspace-dialog").close();
  const last = JSON.stringify({ userId: client.userId, workspace });
  if (sessionStorage.getItem(LAST_TIME)) sessionStorage.setItem(LAST_TIME, last);
  localStorage.setItem(LAST_TIME, last);
  arrive();
});
$("address-button").addEventListener("click", () => {
  $("address-error").hidden = true;
  $("address-form").reset();
  $("address-dialog").showModal();
});
$("address-form").addEventListener("submit", (event) => {
  event.preventDefault();
  for (const id of ["implementation", "specifier"]) {
    const given = $(id).value.trim();
    const possible = asPart(given);
    if (given && given === possible) continue;
    $("address-error").textContent = `No part of an address has spaces, *, > or ::.${possible ? ` “${possible}” would do.` : ""}`;
    $("address-error").hidden = false;
    $(id).focus();
    return;
  }
  $("address-dialog").close(); // which gives the focus back to the button: then it goes to the text field
  choose(topics.agent(client.workspace, $("implementation").value.trim(), $("specifier").value.trim()));
});
addEventListener("storage", (event) => {
  if (talks && event.key === talks.key && talks.takeIn()) show();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !talks) return;
  if (chosen) talks.unread.delete(chosen);
  show();
  lookAround();
});
setInterval(lookAround, LOOK_AROUND_MS);
setInterval(() => work.sweep((agent) => known && agent.startsWith("ag::") && !here.has(agent)) && show(), 500);

// -- coming in

function lastTime(storage) {
  try {
    return JSON.parse(storage.getItem(LAST_TIME));
  } catch {
    return null;
  }
}

const again = lastTime(sessionStorage);
const before = again ?? lastTime(localStorage);
if (before) {
  $("name").value = before.userId;
  $("workspace").value = before.workspace;
}
if (again) enter(again.userId, again.workspace, "");
else view.showWelcome();
