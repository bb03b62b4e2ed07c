/** Writes to the page's elements, always text and never markup. */

import { $, clock, fill, fillNamed, make, moment, named, reconcile } from "/demo/dom.js";
import { isolated, keyOf, visible } from "/demo/model.js";

function hueOf(text) {
  let sum = 0;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 360;
  return sum;
}

function paintAvatar(element, name) {
  element.firstChild?.nodeType === Node.TEXT_NODE && element.firstChild.remove();
  element.prepend(visible([...name][0]?.toUpperCase() ?? "?").slice(0, 1));
  element.style.setProperty("--hue", hueOf(name));
}

function paintBar(bar, task) {
  bar.classList.toggle("unknown", task.part < 0);
  bar.firstElementChild.style.width = task.part < 0 ? "" : `${task.part * 100}%`;
}

export const percentOf = (task) => (task.part < 0 ? "…" : `${Math.round(task.part * 100)} %`);

// -- the frame

const STATUS = {
  connecting: "Connecting",
  open: "Connected",
  reconnecting: "Reconnecting",
  closed: "Not connected",
};

/** Shows a failure: `error` is for the person, `why` has the details. */
export function showWelcome(error, needsKey, why) {
  document.title = "aether";
  $("app").hidden = true;
  $("welcome").hidden = false;
  $("enter-button").disabled = false;
  $("enter-button").textContent = "Enter";
  $("enter-error").hidden = !error;
  $("enter-error").textContent = error ?? "";
  $("enter-error").title = why ?? "";
  if (needsKey) $("key-details").open = true;
  $(needsKey ? "key" : "name").focus();
}

export function showConnecting() {
  $("enter-error").hidden = true;
  $("enter-button").disabled = true;
  $("enter-button").textContent = "Connecting…";
}

export function showApp(client) {
  $("welcome").hidden = true;
  $("app").hidden = false;
  fillNamed($("me-name"), client.userId, client.identity);
  $("me-window").textContent = client.windowId.slice(0, 4);
  $("me-window").title = `This window is ${isolated(client.identity)}`;
  fill($("workspace-name"), named(client.workspace));
  $("workspace-button").title = `Workspace ${isolated(client.workspace)}. Go to another one`;
}

export function showState(state) {
  $("app").dataset.state = state;
  $("status").dataset.state = state;
  $("status-text").textContent = STATUS[state] ?? state;
}

/** Shows a bar across the page: { text, why, button, bad }; null hides it. */
export function showBanner(banner) {
  $("banner").hidden = !banner;
  if (!banner) return;
  $("banner").dataset.kind = banner.bad ? "bad" : "warn";
  $("banner-text").title = banner.why ?? "";
  if ($("banner-text").textContent !== banner.text) $("banner-text").textContent = banner.text;
  $("banner-button").hidden = !banner.button;
  $("banner-button").textContent = banner.button ?? "";
}

/** Keeps the end of the log in view when the window, the keyboard or a progress bar takes room. */
let stayAtEnd = true;
new ResizeObserver(() => {
  if (stayAtEnd) $("log").scrollTop = $("log").scrollHeight;
}).observe($("log"));
$("log").addEventListener("scroll", () => {
  stayAtEnd = isAtEnd();
});

function isAtEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

/** Says words and names to a screen reader. */
export function tellNews(...parts) {
  $("news").replaceChildren(...parts);
}

// -- who is here

function makeAgent() {
  const item = make("li");
  const button = make("button", "agent");
  button.type = "button";
  const avatar = make("span", "avatar");
  avatar.setAttribute("aria-hidden", "true");
  avatar.append(make("span", "dot"));
  const bar = make("span", "bar");
  bar.append(make("span"));
  bar.hidden = true;
  const name = make("span", "name");
  name.append(make("span"), make("span", "soft"));
  button.append(avatar, name, make("span", "note"), make("span", "badge"), bar);
  item.append(button);
  return item;
}

/** Lists the agents: { topic, name, specifier, kind, here, unknown, startable, note, unread, task, current } each. */
export function showAgents(agents, note) {
  reconcile($("agents"), agents, (agent) => agent.topic, makeAgent, (item, agent) => {
    const [button] = item.children;
    const [avatar, name, about, badge, bar] = button.children;
    button.dataset.topic = agent.topic;
    button.classList.toggle("gone", !agent.here && !agent.unknown && !agent.startable);
    button.classList.toggle("unknown", agent.unknown);
    button.setAttribute("aria-current", String(agent.current));
    button.title = isolated(agent.topic, 400);
    paintAvatar(avatar, agent.name);
    avatar.lastElementChild.classList.toggle("here", agent.here);
    avatar.lastElementChild.classList.toggle("startable", agent.startable && !agent.here);
    fill(name.children[0], named(agent.name));
    fill(name.children[1], " ", ...(agent.specifier ? [named(agent.specifier)] : []), agent.kind === "agent" ? "" : ` ${agent.kind}`);
    fill(about, ...agent.note);
    badge.hidden = !agent.unread;
    badge.textContent = agent.unread > 99 ? "99+" : String(agent.unread);
    badge.setAttribute("aria-label", `${agent.unread} unread`);
    bar.hidden = !agent.task;
    if (agent.task) paintBar(bar, agent.task);
  });
  $("agents-note").hidden = !note;
  $("agents-note").textContent = note;
}

export function showPeople(people) {
  $("people-box").hidden = !people.length;
  reconcile($("people"), people, (one) => one.name, () => {
    const item = make("li");
    item.append(make("span"), make("span", "soft small"));
    return item;
  }, (item, one) => {
    fill(item.children[0], named(one.name), one.me ? " (you)" : "");
    item.children[0].title = isolated(one.name);
    item.children[1].textContent = one.windows === 1 ? "" : `${one.windows} windows`;
  });
}

// -- the conversation

/** Shows the "list", the "chat" or the "task" on small screens; `empty` is shown instead of a conversation. */
export function showLayout(view, empty) {
  $("app").dataset.view = view;
  $("app").classList.toggle("lonely", Boolean(empty?.start));
  $("chat").hidden = view !== "chat";
  $("task").hidden = view !== "task";
  $("no-chat").hidden = !empty;
  if (!empty) return;
  $("no-chat-title").textContent = empty.title;
  fill($("no-chat-text"), ...empty.text);
  $("no-chat-start").hidden = !empty.start;
  $("command").textContent = empty.start ?? "";
}

export function showChatHead(agent) {
  paintAvatar($("chat-avatar"), agent.name);
  fillNamed($("chat-title"), agent.name);
  fill($("chat-address"), named(agent.topic, 400));
  const words = agent.unknown ? "" : agent.here ? "here" : agent.starting ? "is being started" : agent.startable ? "starts when you write" : "not here";
  const presence = $("chat-presence");
  if (presence.dataset.words !== words) {
    presence.dataset.words = words;
    const dot = make("span", agent.here ? "dot here" : agent.startable || agent.starting ? "dot startable" : "dot");
    presence.replaceChildren(...(words ? [dot, words] : []));
  }
  const name = isolated(agent.name);
  const waits = !agent.here && !agent.unknown && !agent.startable && !agent.starting;
  $("text").placeholder = waits ? `${name} is not here. What you write waits` : `Write to ${name}`;
  $("text").setAttribute("aria-label", `Message to ${name}`);
}

/** Says under the text field why it is not sent; "" says nothing. */
export function showTextNote(note) {
  $("text-note").hidden = !note;
  if ($("text-note").textContent !== note) $("text-note").textContent = note;
  $("text").setAttribute("aria-invalid", String(Boolean(note)));
}

function makeLine(line) {
  const row = make("div", line.mine ? "line mine" : "line");
  row.append(make("div", "bubble"), make("div", "meta"));
  row.firstElementChild.dir = "auto";
  return row;
}

function paintMeta(meta, line) {
  const time = make("time", "", clock.format(line.at));
  time.dateTime = new Date(line.at).toISOString();
  time.title = moment.format(line.at);
  const parts = [time];
  if (line.mine && line.state === "sending") parts.push(make("span", "", "sending…"));
  if (line.mine && line.state === "sent") parts.push(make("span", "", "✓ kept"));
  if (line.mine && line.state === "failed") {
    const again = make("button", "", line.tooLong ? "edit" : "try again");
    again.type = "button";
    again.dataset[line.tooLong ? "edit" : "again"] = line.id;
    parts.push(make("span", "", `not sent: ${line.why}`), again);
  }
  meta.replaceChildren(...parts);
}

/** Shows a conversation's lines; scrolls to the end if it was in view, or `jump` is set. */
export function showLines(lines, agent, jump) {
  const log = $("log");
  if (jump) stayAtEnd = true; // also when progress bars take room from it in a moment
  const items = lines.length ? lines : [{ id: "empty" }];
  const isEmpty = (line) => line.id === "empty" && !lines.length;
  reconcile(log, items, (line) => (isEmpty(line) ? "empty" : keyOf(line)), (line) => (isEmpty(line) ? make("p", "empty") : makeLine(line)), (row, line) => {
    if (isEmpty(line)) {
      fill(row, ...agent.greeting);
      return;
    }
    const before = lines[lines.indexOf(line) - 1];
    row.classList.toggle("follows", before?.mine === line.mine && line.at - before.at < 60_000);
    row.classList.toggle("failed", line.state === "failed");
    const signature = `${line.state} ${line.why ?? ""}`;
    if (row.dataset.signature === signature) return;
    row.dataset.signature = signature;
    row.children[0].textContent = line.text;
    paintMeta(row.children[1], line);
  });
  if (stayAtEnd) log.scrollTop = log.scrollHeight;
}

function makeTask() {
  const card = make("div", "task");
  const words = make("div", "words");
  const open = make("button", "quiet small");
  open.type = "button";
  words.append(make("bdi", "summary"), make("span", "soft small steps"), make("span", "percent"), open);
  const bar = make("div", "bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  bar.append(make("span"));
  card.append(words, bar);
  return card;
}

/** Shows what an agent works on: { key, summary, steps, part, failed, state, taskId, open } each; `open` is a button's word. */
export function showWork(tasks) {
  $("tasks").hidden = !tasks.length;
  reconcile($("tasks"), tasks, (task) => task.key, makeTask, (card, task) => {
    const [words, bar] = card.children;
    const [summary, steps, percent, open] = words.children;
    card.classList.toggle("failed", task.failed);
    summary.textContent = visible(task.summary, 300);
    summary.title = isolated(task.summary, 300);
    steps.textContent = task.steps;
    percent.textContent = task.state;
    open.hidden = !task.open;
    open.dataset.task = task.taskId;
    open.textContent = task.open;
    open.setAttribute("aria-label", `${task.open}: ${isolated(task.summary)}`);
    bar.hidden = task.part === null;
    if (task.part === null) return;
    paintBar(bar, task);
    bar.setAttribute("aria-label", isolated(task.summary, 300));
    if (task.part < 0) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", String(Math.round(task.part * 100)));
  });
}

/** Makes the text field grow with its text, not with a long placeholder. */
export function growComposer() {
  const field = $("text");
  field.style.height = "auto";
  if (field.value) field.style.height = `${field.scrollHeight + 2}px`;
}
