/**
 * What the page knows: who is here, what was said, what is under way. No DOM and no network.
 *
 * How people and agents talk on this page (docs/browser.md): a person's first message to an agent is plain text, so any agent
 * can read it. An agent that has answered with JSON { id, text } is sent JSON { id, text, reply_to } from then on, of type CHAT,
 * and answers to `reply_to`, which is all windows of that person in the workspace. The person's window tells those windows what
 * it has sent, { id, text, to }, and what came to it alone, { id, text, from }, so every window shows it. Anything else that is
 * sent to the window is shown as text. Messages come at least once: an id that is known already is not shown again.
 */

const KEPT_LINES = 200;
const KEPT_AGENTS = 50;
const KEPT_TASKS = 20; // of one agent
const DONE_FOR_MS = 2500;
const SILENT_FOR_MS = 120_000;
const GONE_FOR_MS = 15_000; // the silence of an agent that is not here any more
const ENDED = new Set(["completed", "done", "failed", "cancelled", "rejected"]);
const FAILED = new Set(["failed", "cancelled", "rejected"]);
const KINDS = { ag: "agent", tu: "task", ta: "task", tb: "tasks", sv: "service", br: "bridge" };
const SHOWN = 100_000; // characters of one message

/** How long a text of a person may be, in UTF-16 units: as JSON it is less than the gateway's 1 MiB, whatever is in it. */
export const LONGEST_TEXT = 100_000;

/** Splits an address into { kind, workspace, name, specifier }. */
export function partsOf(topic) {
  const [prefix, ...parts] = topic.split("::");
  const kind = KINDS[prefix] ?? "";
  const workspace = ["ag", "tu", "ta", "tb"].includes(prefix) ? parts.shift() : "";
  const [name, ...specifier] = parts;
  return kind && name ? { kind, workspace, name, specifier: specifier.join("::") } : { kind: "", workspace: "", name: topic, specifier: "" };
}

/** Makes a text of others safe to look at: control, format and bidi characters become marks, and it has an end. */
export function visible(text, most = 120, lines = false) {
  const letters = [...String(text)];
  const shown = letters
    .slice(0, most)
    .join("")
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (one) => (lines && one === "\n" ? one : markOf(one)))
    .replace(/(\p{M}{3})\p{M}+/gu, "$1…");
  return letters.length > most ? `${shown}… (${letters.length - most} more characters)` : shown;
}

function markOf(letter) {
  return `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** A name for a text without elements, such as a label: it does not turn the words around it. Elsewhere <bdi> does this. */
export function isolated(name, most = 120) {
  const shown = visible(name, most);
  return RIGHT_TO_LEFT.test(shown) ? `\u2068${shown}\u2069` : shown;
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

/** Reads { id, text, to, from, json } of a message of any sender, in any format. */
export function readMessage(message) {
  let text;
  const plain = { id: message.id, to: "", from: "", json: false };
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(message.payload);
  } catch {
    return { ...plain, text: `${message.payload.length} bytes that are not text` };
  }
  try {
    const value = JSON.parse(text);
    if (value && typeof value.text === "string") {
      const json = typeof value.id === "string" && value.id !== "";
      return {
        id: json ? value.id : message.id, text: shortened(value.text), to: String(value.to ?? ""), from: String(value.from ?? ""), json,
      };
    }
  } catch {
    // Not JSON: the payload is text.
  }
  return { ...plain, text: shortened(text) };
}

function shortened(text) {
  return text.length > SHOWN ? `${text.slice(0, SHOWN)}… (${text.length - SHOWN} more characters)` : text;
}

/** A line's name among those of its conversation. An agent that sends a line back with its id has not said that line before. */
export function keyOf(line) {
  return `${line.mine ? "m" : "a"}${line.id}`;
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

  /** Finds a line that this person has written. */
  find(agent, id) {
    return this.of(agent).find((line) => line.mine && line.id === id);
  }

  /** Whether the agent has answered with { id, text }: then it knows what `reply_to` is. */
  speaksJson(agent) {
    return this.of(agent).some((line) => !line.mine && line.json);
  }

  /** Adds a line { id, mine, text, state }; returns false when it is there already. */
  add(agent, line) {
    const lines = this.of(agent);
    if (lines.some((one) => keyOf(one) === keyOf(line))) return false;
    lines.push({ at: Date.now(), state: "sent", ...line });
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
      const known = new Map(mine.map((line) => [keyOf(line), line]));
      for (const line of lines) {
        const here = known.get(keyOf(line));
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
    try {
      this.storage.setItem(this.key, JSON.stringify(Object.fromEntries(recent)));
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

  /** Adds a progress report. */
  report(progress) {
    const key = `${progress.source} ${progress.taskId}`;
    const { step } = progress;
    const known = progress.completion >= 0;
    const others = this.of(progress.source);
    const before = this.tasks.get(key);
    if (!before && others.length >= KEPT_TASKS) {
      this.tasks.delete(others.reduce((a, b) => (b.heardAt < a.heardAt ? b : a)).key); // the one silent for longest
    }
    this.tasks.set(key, {
      key,
      agent: progress.source,
      taskId: progress.taskId,
      summary: progress.summary || step.name || progress.state || "working",
      steps: step.total ? `${step.sequence} of ${step.total}` : "",
      part: known ? Math.min(1, Math.max(0, progress.completion)) : -1,
      state: progress.state,
      failed: FAILED.has(progress.state),
      ended: ENDED.has(progress.state) || progress.completion >= 1,
      isTask: before?.isTask, // whether the gateway knows a task of this id; undefined: it was not asked
      heardAt: performance.now(),
    });
  }

  of(agent) {
    return [...this.tasks.values()].filter((task) => task.agent === agent);
  }

  ofTask(taskId) {
    return [...this.tasks.values()].findLast((task) => task.taskId === taskId) ?? null;
  }

  /** Reports that may be about a task which has ended meanwhile, without a last report. */
  open() {
    return [...this.tasks.values()].filter((one) => !one.ended && one.taskId && one.isTask !== false);
  }

  /** The task of a report is in this state, whatever its worker has reported last. */
  settle(taskId, state) {
    for (const one of this.tasks.values()) {
      if (one.taskId !== taskId || one.ended) continue;
      one.isTask = true;
      if (!ENDED.has(state)) continue;
      Object.assign(one, { state, ended: true, failed: FAILED.has(state), heardAt: performance.now() });
      if (state === "completed") one.part = 1;
    }
  }

  /** Forgets progress that has ended or got no report for long; returns whether there was any. */
  sweep(isGone = () => false, now = performance.now()) {
    const before = this.tasks.size;
    for (const task of this.tasks.values()) {
      const silence = task.isTask ? Infinity : isGone(task.agent) ? GONE_FOR_MS : SILENT_FOR_MS;
      if (now - task.heardAt > (task.ended ? DONE_FOR_MS : silence)) this.tasks.delete(task.key);
    }
    return this.tasks.size !== before;
  }
}
