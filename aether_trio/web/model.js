/**
 * What the page knows: who is here, what was said, what is under way. No DOM and no network.
 *
 * How people and agents talk on this page (docs/browser.md): a person's message to an agent is JSON { id, text, reply_to },
 * of type CHAT. The person's window sends the same id and text, and { to }, to all windows of that person in the workspace,
 * so every window shows it. The agent answers { id, text } to `reply_to`, which is all those windows as well. Anything
 * else an agent sends is shown as text. Messages come at least once: an id that is known already is not shown again.
 */

const KEPT_LINES = 200;
const KEPT_AGENTS = 50;
const KEPT_TASKS = 20; // of one agent
const DONE_FOR_MS = 2500;
const SILENT_FOR_MS = 120_000;
const ENDED = new Set(["completed", "done", "failed", "cancelled"]);

/** Splits an agent's address into { workspace, name, specifier }. */
export function partsOf(topic) {
  const [kind, workspace, name, ...specifier] = topic.split("::");
  return kind === "ag" ? { workspace, name, specifier: specifier.join("::") } : { workspace: "", name: topic, specifier: "" };
}

/** Makes a text fit as a part of an address, without spaces, `*`, `>` and `::`; the gateway checks it again. */
export function asPart(text) {
  return text
    .trim()
    .replace(/[\s*>\u0000-\u001f\u007f]+/g, "-")
    .replace(/::+/g, "-")
    .replace(/:$/, "");
}

/** Compares names with numbers in them: i2 before i10. */
export function inOrder(a, b) {
  return a.localeCompare(b, undefined, { numeric: true });
}

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Reads { id, text, to } of a message of any sender, in any format. */
export function readMessage(message) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(message.payload);
  } catch {
    return { id: "", text: `${message.payload.length} bytes that are not text`, to: "" };
  }
  try {
    const value = JSON.parse(text);
    if (value && typeof value.text === "string") {
      return { id: String(value.id ?? ""), text: value.text, to: String(value.to ?? "") };
    }
  } catch {
    // Not JSON: the payload is text.
  }
  return { id: "", text, to: "" };
}

/**
 * The conversations of one person in one workspace, by the agent's topic. They are in localStorage, which all windows of
 * this browser share: a window that saves first reads what the others have written.
 */
export class Conversations {
  constructor(storage, user, workspace) {
    this.storage = storage;
    this.key = `aether-page:${user}:${workspace}`;
    this.lines = new Map();
    this.unread = new Map();
    this.takeIn();
  }

  agents() {
    return [...this.lines.keys()];
  }

  of(agent) {
    return this.lines.get(agent) ?? [];
  }

  find(agent, id) {
    return this.of(agent).find((line) => line.id === id);
  }

  /** Adds a line { id, mine, text, state }; returns false when it is there already. */
  add(agent, line) {
    const known = line.id && this.find(agent, line.id);
    if (known) return false;
    const lines = this.of(agent);
    lines.push({ at: Date.now(), state: "sent", passing: !line.id, ...line, id: line.id || newId() });
    this.lines.set(agent, lines.slice(-KEPT_LINES));
    this.save();
    return true;
  }

  mark(agent, id, state, why = "") {
    const line = this.find(agent, id);
    if (!line || (line.state === state && line.why === why)) return;
    Object.assign(line, { state, why });
    this.save();
  }

  /** Returns this person's lines that may not have arrived, as [agent, line]. */
  open() {
    return this.agents().flatMap((agent) =>
      this.of(agent).filter((line) => line.mine && line.state === "sending").map((line) => [agent, line]),
    );
  }

  /** Merges lines that other windows have saved; returns whether one was new. */
  takeIn() {
    let saved = {};
    try {
      saved = JSON.parse(this.storage.getItem(this.key) ?? "{}");
    } catch {
      return false;
    }
    let news = false;
    for (const [agent, lines] of Object.entries(saved)) {
      const mine = this.of(agent);
      const known = new Map(mine.map((line) => [line.id, line]));
      for (const line of lines) {
        const here = known.get(line.id);
        if (!here) mine.push(line);
        else if (here.state !== "sending" || line.state !== "sent") continue;
        else here.state = "sent";
        news = true;
      }
      mine.sort((a, b) => a.at - b.at);
      this.lines.set(agent, mine.slice(-KEPT_LINES));
    }
    return news;
  }

  save() {
    this.takeIn();
    const recent = [...this.lines].sort(([, a], [, b]) => (b.at(-1)?.at ?? 0) - (a.at(-1)?.at ?? 0)).slice(0, KEPT_AGENTS);
    // Lines without an id cannot be told apart between windows, so they stay in this window.
    const kept = recent.map(([agent, lines]) => [agent, lines.filter((line) => !line.passing)]);
    try {
      this.storage.setItem(this.key, JSON.stringify(Object.fromEntries(kept)));
    } catch {
      // With a full storage the history is lost after a reload.
    }
  }
}

/** Keeps the progress of running tasks, by source and task. */
export class Work {
  constructor() {
    this.tasks = new Map();
  }

  /** Adds a progress report; returns the agent's topic. */
  report(progress) {
    const key = `${progress.source} ${progress.taskId}`;
    const { step } = progress;
    const known = progress.completion >= 0;
    const others = this.of(progress.source);
    if (!this.tasks.has(key) && others.length >= KEPT_TASKS) {
      this.tasks.delete(others.reduce((a, b) => (b.heardAt < a.heardAt ? b : a)).key); // the one silent for longest
    }
    this.tasks.set(key, {
      key,
      agent: progress.source,
      summary: progress.summary || step.name || progress.state || "working",
      steps: step.total ? `${step.sequence} of ${step.total}` : "",
      part: known ? Math.min(1, Math.max(0, progress.completion)) : -1,
      failed: progress.state === "failed" || progress.state === "cancelled",
      ended: ENDED.has(progress.state) || progress.completion >= 1,
      heardAt: performance.now(),
    });
    return progress.source;
  }

  of(agent) {
    return [...this.tasks.values()].filter((task) => task.agent === agent);
  }

  /** Forgets progress that has ended or got no report for long; returns whether there was any. */
  sweep(now = performance.now()) {
    const before = this.tasks.size;
    for (const task of this.tasks.values()) {
      if (now - task.heardAt > (task.ended ? DONE_FOR_MS : SILENT_FOR_MS)) this.tasks.delete(task.key);
    }
    return this.tasks.size !== before;
  }
}
