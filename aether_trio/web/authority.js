/**
 * Prompts for authority: who asks to act for whom, in what, where and how long. A person narrows it and decides.
 *
 * What others have written is shown as text only, with marks for characters that would not be seen. Nothing is decided by a
 * key or a click that was meant for something else: no choice has the focus at first, none is a default, and all are
 * disabled for a moment. The gateway's list is what is pending; events say when to read it again.
 */

import { $, clock, make } from "/demo/dom.js";
import { isolated, partsOf, visible } from "/demo/model.js";

const LEVELS = ["READ", "READWRITE", "MANAGE", "ADMIN", "SUPERADMIN"];
const LEVEL_TEXTS = {
  READ: "read", READWRITE: "read and write", MANAGE: "manage", ADMIN: "administrate", SUPERADMIN: "do anything",
};
const ANY_WORKSPACE = "_subject_workspaces"; // all that the subject may use
const SHORTER_S = [10, 60, 300, 900, 1800];
const WORDS = 2000; // of the agent, in characters
const VALUES = 20; // of its metadata
const LISTED = 100;
const CAPABILITIES = 64;
const CALM_MS = 600; // in which a key or a click was meant for what was there before
const LAST_TIMER_MS = 2 ** 31 - 1;

function nameOf(principal, userId) {
  if (!principal) return "you";
  if (principal.type === "user") return principal.id === userId ? `you (${isolated(userId)})` : `user ${isolated(principal.id)}`;
  return `${visible(principal.type)} ${isolated(principal.id, 400)}`;
}

function shortName(principal) {
  return isolated(partsOf(principal?.id ?? "").name || (principal?.id ?? "?"), 40);
}

function lasting(seconds) {
  if (seconds % 3600 === 0) return seconds === 3600 ? "1 hour" : `${seconds / 3600} hours`;
  if (seconds % 60 === 0) return seconds === 60 ? "1 minute" : `${seconds / 60} minutes`;
  return `${seconds} seconds`;
}

let count = 0;

function labelled(input, text, className = "choice") {
  count += 1;
  input.id = `authority-input-${count}`;
  const label = make("label", className, text);
  label.htmlFor = input.id;
  return label;
}

/** One part of a request, with what is left of it: `values()` is null when nothing is, and undefined for all of it. */
class Part {
  constructor(title, asked, { any, example, open }) {
    this.box = make("fieldset", "part");
    this.box.append(make("legend", "", title));
    this.rows = asked.map((text) => this.#row(text, true, open(text), example));
    if (!asked.length) this.rows = [this.#row("", false, true, example, any)];
  }

  #row(text, optional, open, example, any = "") {
    const row = { text, check: null, only: null };
    const shown = visible(text) || any;
    if (optional) {
      row.check = make("input");
      row.check.type = "checkbox";
      row.check.checked = true;
      const line = make("div", "choice-line");
      const label = labelled(row.check, shown);
      line.append(row.check, label);
      this.box.append(line);
    } else this.box.append(make("p", "all", shown));
    if (open) {
      row.only = make("textarea");
      row.only.rows = 1;
      row.only.maxLength = 4096;
      row.only.spellcheck = false;
      row.only.autocapitalize = "off";
      row.only.placeholder = example;
      this.box.append(labelled(row.only, optional ? `Of ${shown} only (one a line)` : "Only (one a line)", "only"), row.only);
    }
    return row;
  }

  values() {
    const kept = this.rows.filter((row) => !row.check || row.check.checked);
    if (!kept.length) return null;
    const left = kept.flatMap((row) => {
      const only = (row.only?.value ?? "").split("\n").map((text) => text.trim()).filter(Boolean);
      return only.length ? only : row.text ? [row.text] : [];
    });
    const all = kept.length === this.rows.length && kept.every((row) => !row.only?.value.trim());
    return all ? undefined : left;
  }
}

const isPattern = (text) => /[*?[\\]/.test(text);

function resourceTexts(scope) {
  return scope.flatMap(({ resourceType: type, patterns }) => (patterns.length ? patterns : [""]).map((one) => `${type}:${one}`));
}

/** Reads "type:pattern" lines; throws for one without a type. */
function resourcesOf(texts) {
  const found = new Map();
  for (const text of texts) {
    const at = text.indexOf(":");
    if (at < 1) throw new Error(`A resource is written as type:name, such as task:42, not ${text}.`);
    const patterns = found.get(text.slice(0, at)) ?? [];
    if (at + 1 < text.length) patterns.push(text.slice(at + 1));
    found.set(text.slice(0, at), patterns);
  }
  return [...found].map(([resourceType, patterns]) => ({ resourceType, patterns }));
}

/** The prompts of one client, that is of one window. */
export class Prompts {
  #client;
  #tell;
  #pending = new Map(); // by id, the oldest first
  #later = new Set(); // put aside in this window
  #capabilities = new Set();
  #shown = null; // { request, parts, level, duration }
  #calm = 0;
  #expiry = 0;
  #reading = false;
  #again = false;
  #deciding = false;
  #notice = null; // { grantId }
  #grants = []; // with which others act for this user
  #grantsEnd = 0;
  #gone = new AbortController();

  /** `tell` says a text to a screen reader. */
  constructor(client, tell) {
    this.#client = client;
    this.#tell = tell;
    const { signal } = this.#gone;
    client.addEventListener("authority_request", ({ detail }) => this.#hear(detail), { signal });
    client.addEventListener("state", ({ detail }) => detail.state === "open" && this.read(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.read(), { signal });
    const on = (id, does) => $(id).addEventListener("click", does, { signal });
    on("authority-deny", () => this.#decide(false));
    on("authority-approve", () => this.#decide(true));
    on("authority-notice-close", () => this.#showNotice(null));
    on("authority-stop", () => this.#stop(this.#notice?.grantId));
    on("grants", (event) => {
      const grantId = event.target.closest("button")?.dataset.key;
      if (grantId) this.#stop(grantId);
    });
    on("requests", (event) => {
      const id = event.target.closest("button")?.dataset.key;
      if (this.#pending.has(id)) this.#open(this.#pending.get(id));
    });
    $("authority-form").addEventListener("submit", (event) => event.preventDefault(), { signal }); // Enter decides nothing
    $("authority-dialog").addEventListener("close", () => this.#closed(), { signal });
  }

  /** Reads from the gateway what is pending. */
  async read() {
    this.#again = true;
    if (this.#reading) return;
    this.#reading = true;
    try {
      while (this.#again && !this.#gone.signal.aborted) {
        this.#again = false;
        const found = await this.#client.authorityRequests.list({ capabilities: [...this.#capabilities], limit: LISTED });
        if (!this.#again) this.#take(found.requests);
        this.#showGrants((await this.#client.grants.listOnMe({ limit: LISTED })).grants);
      }
    } catch {
      // Not connected, or this gateway does not tell: the next event or connection asks again.
    } finally {
      this.#reading = false;
    }
  }

  /** Ends the prompts: the person has left. */
  close() {
    this.#gone.abort();
    clearTimeout(this.#calm);
    clearTimeout(this.#expiry);
    this.#shown = null;
    $("authority-dialog").close();
    $("requests-box").hidden = true;
    $("requests").replaceChildren();
    this.#showGrants([]);
    this.#showNotice(null);
  }

  #hear({ type, request }) {
    if (type === "CREATED") {
      if (request.route.capability && this.#capabilities.size < CAPABILITIES) this.#capabilities.add(request.route.capability);
      this.read();
      return;
    }
    const known = this.#pending.has(request.requestId);
    this.#drop(request.requestId);
    if (known && !(this.#deciding && this.#shown?.request.requestId === request.requestId)) this.#announce(request);
    this.read(); // a list that was on its way may have it still
  }

  #take(requests) {
    const before = this.#pending;
    const now = Date.now();
    const found = requests.filter((one) => !one.expiresAt || one.expiresAt > now).reverse();
    this.#pending = new Map(found.map((one) => [one.requestId, one]));
    for (const one of found) {
      if (before.has(one.requestId)) continue;
      this.#tell(`${shortName(one.requestingActor)} asks to act for ${nameOf(one.targetSubject, this.#client.userId)}`);
    }
    if (this.#shown && !this.#pending.has(this.#shown.request.requestId) && !this.#deciding) this.#hide();
    this.#show();
  }

  #drop(id) {
    this.#pending.delete(id);
    if (this.#shown?.request.requestId === id && !this.#deciding) this.#hide();
    this.#show();
  }

  #show() {
    clearTimeout(this.#expiry);
    const list = [...this.#pending.values()];
    $("requests-box").hidden = !list.length;
    const items = list.map((request) => {
      const old = [...$("requests").children].find((item) => item.firstElementChild.dataset.key === request.requestId);
      return old ?? this.#makeItem(request);
    });
    const same = items.length === $("requests").children.length && items.every((one, at) => one === $("requests").children[at]);
    if (!same) $("requests").replaceChildren(...items);
    const next = Math.min(...list.map((one) => one.expiresAt?.getTime() ?? Infinity));
    if (next < Infinity) {
      this.#expiry = setTimeout(() => this.#expire(), Math.min(LAST_TIMER_MS, Math.max(0, next - Date.now()) + 50));
    }
    if (this.#shown || document.querySelector("dialog[open]")) return;
    const waiting = list.find((one) => !this.#later.has(one.requestId));
    if (waiting) this.#open(waiting);
  }

  #makeItem(request) {
    const item = make("li");
    const button = make("button", "request");
    button.type = "button";
    button.dataset.key = request.requestId;
    button.setAttribute("aria-haspopup", "dialog");
    const until = request.expiresAt ? `until ${clock.format(request.expiresAt)}` : "";
    const whose = `asks to act for ${nameOf(request.targetSubject, this.#client.userId)}`;
    button.append(make("strong", "", shortName(request.requestingActor)), make("span", "soft small", ` ${whose} ${until}`));
    item.append(button);
    return item;
  }

  #expire() {
    const now = Date.now();
    for (const [id, one] of [...this.#pending]) {
      if (one.expiresAt && one.expiresAt <= now) this.#drop(id);
    }
  }

  // -- the dialog

  #open(request) {
    const { userId } = this.#client;
    const who = request.requestingActor;
    $("authority-title").textContent = `${shortName(who)} asks to act for ${nameOf(request.targetSubject, userId)}`;
    const facts = [
      ["Who asks", nameOf(who, userId)],
      ["Acts for", nameOf(request.targetSubject, userId)],
      ...(request.taskId ? [["In its task", visible(request.taskId)]] : []),
      ...(request.expiresAt ? [["To be decided until", clock.format(request.expiresAt)]] : []),
    ];
    $("authority-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
    this.#showWords(request);

    const level = this.#chooseLevel(request);
    const duration = this.#chooseDuration(request);
    const anywhere = request.workspaceScope.includes(ANY_WORKSPACE);
    const parts = {
      operationScope: new Part("What it may do", request.operationScope, {
        any: "Any operation", example: "kv_read", open: isPattern,
      }),
      workspaceScope: new Part("In which workspaces", anywhere ? [] : request.workspaceScope, {
        any: `Any workspace of ${nameOf(request.targetSubject, userId)}`,
        example: this.#client.workspace || "default",
        open: isPattern,
      }),
      resourceScope: new Part("On which resources", resourceTexts(request.resourceScope), {
        any: "Any resource", example: "task:42", open: (text) => isPattern(text) || text.endsWith(":"),
      }),
    };
    $("authority-parts").replaceChildren(level.box, ...Object.values(parts).map((part) => part.box), duration.box);
    $("authority-answer").value = "";
    this.#fail("");
    this.#shown = { request, parts, level, duration };
    for (const button of this.#choices()) button.disabled = true;
    clearTimeout(this.#calm);
    this.#calm = setTimeout(() => {
      for (const button of this.#choices()) button.disabled = false;
    }, CALM_MS);
    $("authority-dialog").showModal();
    $("authority-dialog").scrollTop = 0;
    $("authority-title").focus({ preventScroll: true });
  }

  #choices() {
    return [$("authority-deny"), $("authority-approve")];
  }

  #showWords({ reason, metadata }) {
    const values = Object.entries(metadata);
    $("authority-words-box").hidden = !reason && !values.length;
    $("authority-words").textContent = visible(reason, WORDS, true);
    $("authority-words").hidden = !reason;
    $("authority-values").hidden = !values.length;
    const shown = values.slice(0, VALUES).map(([name, value]) => {
      const item = make("li");
      item.append(make("span", "soft", `${visible(name)}: `), make("span", "", visible(value, 300)));
      return item;
    });
    if (values.length > VALUES) shown.push(make("li", "soft", `and ${values.length - VALUES} more`));
    $("authority-values").replaceChildren(...shown);
  }

  #chooseLevel(request) {
    const box = make("fieldset", "part");
    box.append(make("legend", "", "How much"));
    const inputs = LEVELS.slice(0, LEVELS.indexOf(request.accessLevel) + 1).map((level) => {
      const input = make("input");
      input.type = "radio";
      input.name = "authority-level";
      input.value = level;
      input.checked = level === request.accessLevel;
      const line = make("div", "choice-line");
      const asked = level === request.accessLevel ? " (as asked)" : "";
      line.append(input, labelled(input, `${LEVEL_TEXTS[level]}${asked}`));
      box.append(line);
      return input;
    });
    return { box, value: () => inputs.find((input) => input.checked)?.value };
  }

  #chooseDuration(request) {
    const box = make("fieldset", "part");
    box.append(make("legend", "", "How long"));
    const asked = request.durationSeconds;
    const select = make("select");
    for (const seconds of [...SHORTER_S.filter((one) => one < asked), asked]) {
      const option = make("option", "", `${lasting(seconds)}${seconds === asked ? " (as asked)" : ""}`);
      option.value = String(seconds);
      option.selected = seconds === asked;
      select.append(option);
    }
    box.append(labelled(select, "From the approval on", "only"), select);
    return { box, value: () => Number(select.value) };
  }

  #fail(text) {
    $("authority-error").hidden = !text;
    $("authority-error").textContent = text;
  }

  #hide() {
    this.#shown = null;
    $("authority-dialog").close();
  }

  /** Escape, or "decide later": nothing is decided, and it stays in the list. */
  #closed() {
    if ($("authority-dialog").open) return; // the next one, meanwhile
    clearTimeout(this.#calm);
    if (this.#shown) this.#later.add(this.#shown.request.requestId);
    this.#shown = null;
    this.#show();
  }

  // -- the decision

  #narrowed() {
    const { parts, level, duration, request } = this.#shown;
    const narrowed = {};
    for (const [name, part] of Object.entries(parts)) {
      const left = part.values();
      if (left === null) throw new Error("Nothing is left of one part. Deny the request if nothing shall be allowed.");
      if (left !== undefined) narrowed[name] = name === "resourceScope" ? resourcesOf(left) : left;
    }
    if (level.value() && level.value() !== request.accessLevel) narrowed.accessLevel = level.value();
    if (duration.value() !== request.durationSeconds) narrowed.durationSeconds = duration.value();
    return narrowed;
  }

  async #decide(approves) {
    if (!this.#shown || this.#deciding) return;
    const { request } = this.#shown;
    const { windowId } = this.#client;
    // The decision names its window, so that the other windows can say where it was made.
    const reason = [$("authority-answer").value.trim(), `(window ${windowId.slice(0, 4)})`].filter(Boolean).join(" ");
    this.#fail("");
    this.#deciding = true;
    for (const button of this.#choices()) button.disabled = true;
    let decided = null;
    try {
      decided = approves
        ? await this.#client.authorityRequests.approve(request.requestId, { ...this.#narrowed(), reason })
        : await this.#client.authorityRequests.deny(request.requestId, reason);
    } catch (error) {
      this.#fail(visible(error.message, 500));
    } finally {
      this.#deciding = false;
      for (const button of this.#choices()) button.disabled = false;
    }
    if (this.#gone.signal.aborted) return;
    if (!decided) {
      const now = await this.#client.authorityRequests.get(request.requestId).catch(() => null);
      if (!now || now.status === "PENDING") {
        this.read();
        return;
      }
      decided = now; // another window was faster
    }
    this.#drop(request.requestId);
    this.#announce(decided);
  }

  /** Says what became of a request: what was granted is what the gateway has recorded. */
  async #announce(request) {
    const { userId } = this.#client;
    const who = shortName(request.requestingActor);
    if (request.status === "EXPIRED" || request.status === "CANCELLED") {
      const end = request.status === "EXPIRED" ? `The request of ${who} has expired.` : `${who} has withdrawn its request.`;
      this.#showNotice({ text: end });
      return;
    }
    const said = visible(request.resolutionReason, 600);
    const by = `${nameOf(request.resolvedBy, userId)}${said && !said.startsWith("(") ? ":" : ""} ${said}`;
    if (request.status === "DENIED") {
      this.#showNotice({ text: `Denied. ${who} may not act for ${nameOf(request.targetSubject, userId)}. Decided by ${by}` });
      return;
    }
    let what = "";
    try {
      what = grantText(await this.#client.grants.get(request.grantId));
    } catch {
      // Another subject's: only what was decided is known.
    }
    const text = `Approved. ${who} may act for ${nameOf(request.targetSubject, userId)}${what}. Decided by ${by}`;
    this.#showNotice({ text, grantId: what && request.grantId });
  }

  #showNotice(notice) {
    this.#notice = notice;
    $("authority-notice").hidden = !notice;
    $("authority-stop").hidden = !notice?.grantId;
    $("authority-notice-text").textContent = notice?.text ?? "";
  }

  /** Lists who acts for this user, each with a button that ends it. */
  #showGrants(grants) {
    clearTimeout(this.#grantsEnd);
    const now = Date.now();
    this.#grants = grants.filter((one) => !one.revoked && (!one.expiresAt || one.expiresAt > now));
    $("grants-box").hidden = !this.#grants.length;
    const before = new Map([...$("grants").children].map((item) => [item.dataset.key, item]));
    const items = this.#grants.map((grant) => before.get(grant.grantId) ?? makeGrant(grant));
    const same = items.length === before.size && items.every((one, at) => one === $("grants").children[at]);
    if (!same) $("grants").replaceChildren(...items);
    const next = Math.min(...this.#grants.map((one) => one.expiresAt?.getTime() ?? Infinity));
    if (next === Infinity || this.#gone.signal.aborted) return;
    this.#grantsEnd = setTimeout(() => this.#showGrants(this.#grants), Math.min(LAST_TIMER_MS, Math.max(0, next - now) + 50));
  }

  async #stop(grantId) {
    if (!grantId) return;
    try {
      await this.#client.grants.revoke(grantId);
      this.#showNotice({ text: "Stopped. The grant is revoked, everywhere." });
    } catch (error) {
      this.#showNotice({ text: `It could not be stopped: ${visible(error.message, 300)}`, grantId });
    }
    this.read();
    $("authority-notice-close").focus();
  }
}

function makeGrant(grant) {
  const item = make("li", "grant");
  item.dataset.key = grant.grantId;
  const words = make("span");
  words.append(make("strong", "", shortName(grant.delegate)), make("span", "soft small", grantText(grant)));
  const button = make("button", "", "Stop");
  button.type = "button";
  button.dataset.key = grant.grantId;
  button.setAttribute("aria-label", `Stop ${shortName(grant.delegate)}`);
  item.append(words, button);
  return item;
}

function grantText(grant) {
  const level = `: ${LEVEL_TEXTS[grant.accessLevel] ?? visible(grant.accessLevel)}`;
  const listed = (word, texts) => (texts.length ? `, ${word} ${texts.map((text) => visible(text)).join(", ")}` : "");
  return [
    level,
    listed("in", grant.workspaceScope),
    listed("on", resourceTexts(grant.resourceScope)),
    listed("by", grant.operationScope),
    grant.expiresAt ? `, until ${clock.format(grant.expiresAt)}` : "",
  ].join("");
}
