/** The page for people: one window of one person in one workspace. Wires the client, the model and the view. */

import { Client, topics } from "/client/aether.js";
import { Prompts } from "/demo/authority.js";
import { Conversations, Work, asPart, inOrder, newId, partsOf, readMessage } from "/demo/model.js";
import * as view from "/demo/view.js";

const LOOK_AROUND_MS = 2000;
const LAST_TIME = "aether-page"; // who was here: in sessionStorage for a reload, in localStorage for the form
const KEPT_GONE = 50; // agents that are not here any more, in the list
const $ = (id) => document.getElementById(id);

let client = null;
let talks = null;
let prompts = null;
let work = new Work();
let here = new Map(); // agents that are connected, by topic
let seen = new Set(); // agents that were
let people = [];
let mayLook = true;
let known = false; // whether the agents were listed once
let chosen = "";

// -- what is shown

function agentOf(topic) {
  const { name, specifier } = partsOf(topic);
  const unknown = !mayLook || client.state !== "open";
  const isHere = here.has(topic) && !unknown;
  const last = talks.of(topic).at(-1);
  const note = last ? `${last.mine ? "You: " : ""}${last.text}` : isHere ? "Say hello" : unknown ? "" : "Not here";
  const task = work.of(topic).find((one) => !one.ended) ?? null;
  return {
    topic, name, specifier, here: isHere, unknown, task, note,
    unread: talks.unread.get(topic) ?? 0,
    current: topic === chosen,
  };
}

function emptyOf(agents) {
  if (chosen) return null;
  if (!known) return { title: "Looking around…", text: "" };
  if (agents.some((agent) => agent.here)) return { title: "Pick an agent", text: "Everything it says shows up in all your windows." };
  const port = location.port ? location.host : `${location.hostname}:${location.protocol === "https:" ? 443 : 80}`;
  return {
    title: "No agent is here yet",
    text: `No agent is connected in the workspace ${client.workspace}.`,
    start: `python docs/examples/chat_agent.py ${port} --workspace ${quoted(client.workspace)}`,
  };
}

function quoted(text) {
  return /^[\w@.:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function show({ jump = false } = {}) {
  if (!client || !talks) return;
  const all = new Set([...here.keys(), ...talks.agents(), ...seen.keys()]);
  if (chosen) all.add(chosen);
  const agents = [...all].map(agentOf).sort((a, b) => b.here - a.here || inOrder(a.topic, b.topic));
  const note = !known ? "Looking around…" : !mayLook ? "This gateway does not say who is here." : agents.length ? "" : "No agent yet.";
  view.showAgents(agents, note);
  view.showPeople(people);
  view.showLayout(chosen ? "chat" : "list", emptyOf(agents));
  const unread = agents.reduce((sum, agent) => sum + agent.unread, 0);
  document.title = `${unread ? `(${unread}) ` : ""}${chosen ? partsOf(chosen).name : client.workspace} · aether`;
  if (!chosen) return;
  const agent = agentOf(chosen);
  view.showChatHead(agent);
  view.showTasks(work.of(chosen));
  view.showLines(talks.of(chosen), agent, jump);
}

function choose(topic) {
  chosen = topic;
  if (topic) talks.unread.delete(topic);
  show({ jump: true });
  if (topic) $("text").focus({ preventScroll: true });
  else $("agents").querySelector("button")?.focus();
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
    if (!detail.source.startsWith("ag::")) return;
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
  client = null;
  talks = null;
  leaving?.close();
  view.showBanner(null);
  view.showWelcome();
}

// -- who is here

let looking = false;

async function lookAround() {
  if (looking || !client || client.state !== "open" || document.hidden) return;
  looking = true;
  const { workspace } = client;
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

function take(found) {
  const agents = new Map(found.filter((one) => one.type === "agent").map((one) => [one.identity, one]));
  if (known) {
    const came = [...agents.keys()].filter((topic) => !here.has(topic)).map((topic) => `${partsOf(topic).name} is here`);
    const left = [...here.keys()].filter((topic) => !agents.has(topic)).map((topic) => `${partsOf(topic).name} has left`);
    const news = [...came, ...left];
    const many = `${came.length} agents have come, ${left.length} have left`;
    if (news.length) view.tellNews(news.length > 5 ? many : news.join(", "));
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
  const { id, text, to } = readMessage(message);
  if (message.source.startsWith(`us::${client.userId}::`) && to) {
    // A window of this person has sent this line; that window's flush marks it as delivered.
    talks.add(to, { id, text, mine: true });
    show();
  } else if (message.source.startsWith("ag::")) {
    const isNew = talks.add(message.source, { id, text, mine: false });
    if (isNew && (message.source !== chosen || document.hidden)) {
      talks.unread.set(message.source, (talks.unread.get(message.source) ?? 0) + 1);
    }
    show();
  }
}

function say(agent, text) {
  const line = { id: newId(), text, mine: true, state: "sending" };
  talks.add(agent, line);
  posted.add(line.id);
  post(agent, line);
  show({ jump: true });
}

/** Sends the lines one at a time, because a refusal does not name the send that it is about. */
let posting = Promise.resolve();

function post(agent, line) {
  const from = { client, talks, everywhere: topics.userIn(client.userId, client.workspace) };
  posting = posting.then(() => postNow(from, agent, line));
}

async function postNow(from, agent, { id, text }) {
  try {
    // To the other windows first: an answer comes on the same topic, behind it.
    from.client.send(from.everywhere, { id, text, to: agent }, { type: "EVENT" });
    from.client.send(agent, { id, text, reply_to: from.everywhere }, { type: "CHAT" });
    await from.client.flush();
    from.talks.mark(agent, id, "sent");
  } catch (error) {
    if (error.code === "CLOSED" || from.client.state === "closed") return; // it stays open, for the next time
    from.talks.mark(agent, id, "failed", error.message);
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
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !chosen) return;
  say(chosen, text);
  $("text").value = "";
  view.growComposer();
});
$("text").addEventListener("input", view.growComposer);
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("log").addEventListener("click", (event) => {
  const line = talks.find(chosen, event.target.dataset?.again);
  if (!line) return;
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
$("address-button").addEventListener("click", () => $("address-dialog").showModal());
$("address-form").addEventListener("submit", () => {
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
setInterval(() => work.sweep() && show(), 500);

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
