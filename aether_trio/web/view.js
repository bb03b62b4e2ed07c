/** Writes to the page's elements, always text and never markup. */

const $ = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Makes the children of `parent` those of `items`, keeping elements (and so the focus) by key. */
function reconcile(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = null;
  for (const item of items) {
    const key = keyOf(item);
    const element = old.get(key) ?? create(item);
    old.delete(key);
    element.dataset.key = key;
    update(element, item);
    const next = at ? at.nextElementSibling : parent.firstElementChild;
    if (next !== element) parent.insertBefore(element, next);
    at = element;
  }
  for (const element of old.values()) element.remove();
}

function hueOf(text) {
  let sum = 0;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 360;
  return sum;
}

function paintAvatar(element, name) {
  element.firstChild?.nodeType === Node.TEXT_NODE && element.firstChild.remove();
  element.prepend([...name][0]?.toUpperCase() ?? "?");
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
  $("me-name").textContent = client.userId;
  $("me-name").title = client.identity;
  $("me-window").textContent = client.windowId.slice(0, 4);
  $("me-window").title = `This window is ${client.identity}`;
  $("workspace-name").textContent = client.workspace;
  $("workspace-button").title = `Workspace ${client.workspace}. Go to another one`;
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

export function tellNews(text) {
  $("news").textContent = text;
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

/** Lists the agents: { topic, name, specifier, here, unknown, note, unread, task, current } each. */
export function showAgents(agents, note) {
  reconcile($("agents"), agents, (agent) => agent.topic, makeAgent, (item, agent) => {
    const [button] = item.children;
    const [avatar, name, about, badge, bar] = button.children;
    button.dataset.topic = agent.topic;
    button.classList.toggle("gone", !agent.here && !agent.unknown);
    button.classList.toggle("unknown", agent.unknown);
    button.setAttribute("aria-current", String(agent.current));
    button.title = agent.topic;
    paintAvatar(avatar, agent.name);
    avatar.lastElementChild.classList.toggle("here", agent.here);
    name.children[0].textContent = agent.name;
    name.children[1].textContent = ` ${agent.specifier}`;
    about.textContent = agent.note;
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
    item.children[0].textContent = one.me ? `${one.name} (you)` : one.name;
    item.children[0].title = one.name;
    item.children[1].textContent = one.windows === 1 ? "" : `${one.windows} windows`;
  });
}

// -- the conversation

/** Shows the "list" or the "chat" on small screens; `empty` is shown instead of a conversation. */
export function showLayout(view, empty) {
  $("app").dataset.view = view;
  $("app").classList.toggle("lonely", Boolean(empty?.start));
  $("chat").hidden = Boolean(empty);
  $("no-chat").hidden = !empty;
  if (!empty) return;
  $("no-chat-title").textContent = empty.title;
  $("no-chat-text").textContent = empty.text;
  $("no-chat-start").hidden = !empty.start;
  $("command").textContent = empty.start ?? "";
}

export function showChatHead(agent) {
  paintAvatar($("chat-avatar"), agent.name);
  $("chat-title").textContent = agent.name;
  $("chat-title").title = agent.name;
  $("chat-address").textContent = agent.topic;
  const presence = $("chat-presence");
  const words = agent.unknown ? "" : agent.here ? "here" : "not here";
  presence.replaceChildren(...(words ? [make("span", agent.here ? "dot here" : "dot"), words] : []));
  const waits = !agent.here && !agent.unknown;
  $("text").placeholder = waits ? `${agent.name} is not here. What you write waits` : `Write to ${agent.name}`;
  $("text").setAttribute("aria-label", `Message to ${agent.name}`);
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
    const again = make("button", "", "try again");
    again.type = "button";
    again.dataset.again = line.id;
    parts.push(make("span", "", `not sent: ${line.why}`), again);
  }
  meta.replaceChildren(...parts);
}

/** Shows a conversation's lines; scrolls to the end if it was in view, or `jump` is set. */
export function showLines(lines, agent, jump) {
  const log = $("log");
  if (jump) stayAtEnd = true; // also when progress bars take room from it in a moment
  const items = lines.length ? lines : [{ id: "empty" }];
  reconcile(log, items, (line) => line.id, (line) => (line.id === "empty" ? make("p", "empty") : makeLine(line)), (row, line) => {
    if (line.id === "empty") {
      row.textContent = agent.here ? `Say hello to ${agent.name}.` : `${agent.name} is not here now. What you write waits for it.`;
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
  words.append(make("span", "summary"), make("span", "soft small steps"), make("span", "percent"));
  const bar = make("div", "bar");
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  bar.append(make("span"));
  card.append(words, bar);
  return card;
}

export function showTasks(tasks) {
  $("tasks").hidden = !tasks.length;
  reconcile($("tasks"), tasks, (task) => task.key, makeTask, (card, task) => {
    const [words, bar] = card.children;
    const [summary, steps, percent] = words.children;
    card.classList.toggle("failed", task.failed);
    summary.textContent = task.summary;
    summary.title = task.summary;
    steps.textContent = task.steps;
    percent.textContent = task.failed ? "failed" : percentOf(task);
    paintBar(bar, task);
    bar.setAttribute("aria-label", task.summary);
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
