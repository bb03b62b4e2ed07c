/**
 * Tasks of the workspace: which there are, how far they are, and the form of one that waits for a person.
 *
 * The gateway's lists are what there is; they are read now and then, and when an event says so. A question, choices and
 * labels are words of the task's worker, shown as text only. An answer belongs to the wait that was shown: the task is looked
 * at once more before it is sent, so that no answer goes to a question that the person has not seen.
 */

import { $, clock, fill, fillNamed, make, named, reconcile, short } from "/demo/dom.js";
import { LONGEST_TEXT, isolated, visible } from "/demo/model.js";

const LISTED = 100;
const SHOWN = 30; // in the list at the left, of those that have not ended
const SHOWN_ENDED = 5;
const ASKED_AT_ONCE = 5; // tasks of progress bars that no list has, in one look
const WORDS = 4000; // of a question, in characters
const CHOICE = 200;
const VALUES = 20;
const LONGEST_ANSWER = 10_000;
const TAKEN_WITHIN_MS = 10_000; // an answer that is committed is taken by its task a moment later
const STARTUP = "agent_startup";
const TIMER = "aether.wait_until"; // the wait of a task for a moment, which no person ends
const ENDED = new Set(["COMPLETED", "FAILED", "CANCELLED", "REJECTED"]);
const WORDS_OF = {
  QUEUED: "waits for a worker", RUNNING: "runs", COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled",
  WAITING_INPUT: "waits for an answer", WAITING_AUTHORITY: "waits for authority", WAITING_DEPENDENCY: "waits for other tasks",
  HIBERNATED: "sleeps", REJECTED: "rejected by its worker",
};

export const hasEnded = (task) => ENDED.has(task.status);

/** Whether an answer of a person ends its wait. */
export function asksPeople(task) {
  return task.status === "WAITING_INPUT" && task.wait !== null && !(TIMER in task.wait.pairs);
}

/** Whether a window is one of those that may answer; the gateway decides it in the same way. */
export function mayAnswer(wait, { userId, identity }) {
  const names = new Set([identity, `user:${userId}`, `us::${userId}`, ...(userId.includes(":") ? [] : [userId])]);
  return !wait.expectedPrincipal || names.has(wait.expectedPrincipal);
}

/** Who alone may answer, as a person says it. */
function expectedName(expected, userId) {
  const [, user = expected, window = ""] = /^(?:user:|us::)(.*?)(?:::(.*))?$/.exec(expected) ?? [];
  if (expected.startsWith("us::") && window) {
    return user === userId ? `your window ${isolated(window)}` : `the window ${isolated(window)} of user ${isolated(user)}`;
  }
  return /^\w+(::|:)/.test(expected) && !/^(user:|us::)/.test(expected) ? isolated(expected, 400) : `user ${isolated(user)}`;
}

/** Names a wait: another one of the same task has another name. */
function waitKey(task) {
  return task.wait && JSON.stringify([task.taskId, task.pausedAt, task.wait]);
}

/** What a task is called: its type, or which execution or step of a workflow it is. */
export function titleOf({ type, metadata }) {
  if (type === "workflow_run" && metadata.workflow_id) return `workflow ${metadata.workflow_id}`;
  if (metadata.workflow === "true" && metadata.step_id) {
    const item = metadata.item ?? metadata.round;
    return `step ${metadata.step_id}${item === undefined ? "" : `[${item}]`}`;
  }
  return type || "task";
}

export function stateText(task, progress = null) {
  const { metadata } = task;
  if (task.status === "QUEUED" && metadata._outcome === "retry") {
    const at = Number(metadata._next_attempt_ms ?? 0);
    return `failed, tried again ${at > Date.now() ? `at ${clock.format(at)}` : "soon"}`;
  }
  if (task.status === "RUNNING" && progress) return progress.part < 0 ? "runs" : `${Math.round(progress.part * 100)} %`;
  if (task.status === "WAITING_INPUT" && task.wait && TIMER in task.wait.pairs) {
    return task.wait.wakeAt ? `sleeps until ${short.format(task.wait.wakeAt)}` : "sleeps";
  }
  return WORDS_OF[task.status] ?? task.status.toLowerCase();
}

function attemptText(task) {
  const following = task.status === "FAILED" ? task.failures : task.failures + 1;
  const number = Math.max(Math.min(following, task.maxAttempts || following), 1);
  return task.maxAttempts > 1 ? `${number} of ${task.maxAttempts}` : "";
}

/** What is left of a failure, for a person. */
function outcomeText({ status, metadata }) {
  if (status !== "FAILED") return "";
  return {
    exhausted: "It has failed as often as its retry policy allows.", no_policy: "It has no retry policy, so it is not tried again.",
    final: "It is not tried again.",
  }[metadata._outcome] ?? "";
}

function resultText({ metadata }) {
  if ("_result" in metadata) {
    try {
      return JSON.stringify(JSON.parse(metadata._result), null, 2);
    } catch {
      return metadata._result;
    }
  }
  if ("_result_base64" in metadata) return `${Math.floor((metadata._result_base64.length * 3) / 4)} bytes`;
  if ("_result_checkpoint" in metadata) return `in the checkpoint ${metadata._result_checkpoint}`;
  return "";
}

/** Who has answered the wait before, if the gateway says so. */
function answeredBy({ metadata }) {
  try {
    return String(JSON.parse(metadata._input).by ?? "");
  } catch {
    return "";
  }
}

/** The tasks of one workspace, in one window. */
export class Tasks {
  #client;
  #work;
  #tell;
  #changed;
  #tasks = new Map(); // the latest change first
  #starts = new Map(); // the latest start of an agent, by its topic
  #looking = false;
  #again = false;
  #told = new Set(); // waits of which a screen reader was told
  #openId = "";
  #opened = null; // the task of the view, as GET says
  #subscription = "";
  #shownWait = "";
  #answered = ""; // the wait that this window has answered
  #deciding = false;
  #gone = new AbortController();

  /** `tell` says words to a screen reader; `changed` is called when there is something else to show. */
  constructor(client, work, { tell, changed }) {
    this.#client = client;
    this.#work = work;
    this.#tell = tell;
    this.#changed = changed;
    const { signal } = this.#gone;
    client.addEventListener("task_event", ({ detail }) => this.#hear(detail), { signal });
    client.addEventListener("state", ({ detail }) => {
      if (detail.state === "open") this.#follow();
      else this.#subscription = "";
      this.#enable();
    }, { signal });
    client.addEventListener("progress", ({ detail }) => {
      if (detail.source === "gateway") this.look(); // a task of this person is in another state
    }, { signal });
    $("task-approve").addEventListener("click", () => this.#answer("approve"), { signal });
    $("task-reject").addEventListener("click", () => this.#answer("reject"), { signal });
    $("task-cancel").addEventListener("click", () => this.#cancel(), { signal });
    $("task-form").addEventListener("submit", (event) => event.preventDefault(), { signal }); // Enter decides nothing
    $("task-form").addEventListener("input", () => {
      this.#fail("");
      this.#checkText();
    }, { signal });
  }

  /** Ends it: the person has left the workspace. */
  close() {
    this.#gone.abort();
    this.#closeView();
  }

  get openId() {
    return this.#openId;
  }

  /** How many tasks wait for an answer that this window may give. */
  get waiting() {
    return this.#asking().length;
  }

  /** The tasks that an agent has and that have not ended. */
  of(agent) {
    return [...this.#tasks.values()].filter((task) => task.assignedTo === agent && !hasEnded(task));
  }

  /** The latest start of an agent, a task, or null. */
  startOf(agent) {
    return this.#starts.get(agent) ?? null;
  }

  #asking() {
    return [...this.#tasks.values()].filter((task) => this.#asks(task));
  }

  #asks(task) {
    return asksPeople(task) && mayAnswer(task.wait, this.#client);
  }

  /** Reads from the gateway which tasks there are. */
  async look() {
    this.#again = true;
    if (this.#looking || this.#client.state !== "open") return;
    this.#looking = true;
    try {
      while (this.#again && !this.#gone.signal.aborted) {
        this.#again = false;
        await this.#lookOnce();
      }
    } catch {
      // Not connected: the next look comes with the connection.
    } finally {
      this.#looking = false;
    }
  }

  async #lookOnce() {
    const { tasks } = this.#client;
    const lists = [{ statuses: ["WAITING_INPUT"] }, {}, { type: STARTUP }].map((filter) => tasks.list({ ...filter, limit: LISTED }));
    const [waiting, latest, starts] = (await Promise.all(lists)).map((page) => page.tasks);
    if (this.#gone.signal.aborted) return;
    this.#starts = new Map(starts.reverse().map((task) => [task.target, task]));
    const found = [...latest, ...waiting].filter((task) => task.type !== STARTUP);
    this.#tasks = new Map(found.map((task) => [task.taskId, task]));
    await this.#settle();
    if (this.#openId) await this.#read();
    this.#tellOfWaits();
    this.#changed();
  }

  /** Ends the progress bars of tasks that have ended, of those too that no list has any more. */
  async #settle() {
    const missing = [];
    for (const one of this.#work.open()) {
      const task = this.#tasks.get(one.taskId);
      if (task) this.#work.settle(task.taskId, task.status.toLowerCase());
      else if (missing.length < ASKED_AT_ONCE) missing.push(one);
    }
    for (const one of missing) {
      try {
        const task = await this.#client.tasks.get(one.taskId);
        if (task.workspace === this.#client.workspace && !hasEnded(task)) this.#tasks.set(task.taskId, task);
        this.#work.settle(one.taskId, task.status.toLowerCase());
      } catch (error) {
        if (["DISCONNECTED", "CLOSED", "TIMEOUT"].includes(error.code)) throw error;
        one.isTask = false; // a word of its agent
      }
    }
  }

  #tellOfWaits() {
    const mine = this.#asking();
    const fresh = mine.filter((task) => !this.#told.has(waitKey(task)));
    this.#told = new Set(mine.map(waitKey));
    if (fresh.length === 1) this.#tell("The task ", named(titleOf(fresh[0])), " waits for an answer");
    else if (fresh.length) this.#tell(`${fresh.length} tasks wait for an answer`);
  }

  // -- the lists at the left

  show() {
    const asking = this.#asking();
    $("waiting-box").hidden = !asking.length;
    this.#showList($("waiting"), asking);
    const others = [...this.#tasks.values()].filter((task) => !this.#asks(task));
    const [live, ended] = [others.filter((task) => !hasEnded(task)), others.filter(hasEnded)];
    const shown = [...live.slice(0, SHOWN), ...ended.slice(0, SHOWN_ENDED)];
    $("tasks-box").hidden = !shown.length;
    this.#showList($("task-list"), shown);
    const more = live.length - SHOWN;
    $("tasks-note").hidden = more <= 0;
    $("tasks-note").textContent = more > 0 ? `and ${more} more` : "";
  }

  #showList(list, tasks) {
    reconcile(list, tasks, (task) => task.taskId, makeItem, (item, task) => {
      const [button] = item.children;
      const [dot, name, note, bar] = button.children;
      const progress = task.status === "RUNNING" ? this.#work.ofTask(task.taskId) : null;
      button.dataset.task = task.taskId;
      button.setAttribute("aria-current", String(task.taskId === this.#openId));
      dot.dataset.status = task.status;
      fillNamed(name, titleOf(task), `${task.type} ${task.taskId}`);
      fill(note, ...this.#noteOf(task, progress));
      bar.hidden = !progress || progress.part < 0;
      if (progress && progress.part >= 0) bar.firstElementChild.style.width = `${progress.part * 100}%`;
    });
  }

  #noteOf(task, progress) {
    if (!asksPeople(task)) {
      const why = task.status === "FAILED" && task.error ? `: ${visible(task.error, 80)}` : "";
      return [stateText(task, progress) + why];
    }
    if (!mayAnswer(task.wait, this.#client)) return [`waits for ${expectedName(task.wait.expectedPrincipal, this.#client.userId)}`];
    return task.wait.form ? [named(task.wait.form.question.replace(/\s+/g, " "), 80)] : [stateText(task)];
  }

  // -- one task

  /** Shows a task; "" shows none. */
  async open(taskId) {
    if (taskId === this.#openId) return;
    this.#closeView();
    this.#openId = taskId;
    if (!taskId) return;
    this.#opened = this.#tasks.get(taskId) ?? null;
    this.#say("");
    this.showOpen();
    this.#follow();
    try {
      await this.#read();
      this.showOpen();
    } catch {
      // Not connected: it is read with the connection.
    }
  }

  #closeView() {
    if (this.#subscription && this.#client.state === "open") this.#client.tasks.unsubscribe(this.#subscription).catch(() => {});
    this.#subscription = this.#openId = this.#shownWait = this.#answered = "";
    this.#opened = null;
  }

  async #read() {
    const taskId = this.#openId;
    try {
      const task = await this.#client.tasks.get(taskId);
      if (taskId !== this.#openId) return;
      this.#opened = task;
      if (this.#tasks.has(taskId)) this.#tasks.set(taskId, task);
    } catch (error) {
      if (["DISCONNECTED", "CLOSED", "TIMEOUT"].includes(error.code)) throw error;
      if (taskId === this.#openId) this.#say(`The gateway does not show this task any more: ${visible(error.message, 300)}`);
    }
  }

  /** Has the gateway tell of the task in view; what it has reported before is told as well. */
  async #follow() {
    const taskId = this.#openId;
    if (!taskId || this.#client.state !== "open") return;
    try {
      const since = new Date(Math.max(1, (this.#opened?.startedAt?.getTime() ?? 0) - 1000));
      const subscription = await this.#client.tasks.subscribe(taskId, { since });
      if (taskId === this.#openId && !this.#subscription) this.#subscription = subscription;
      else await this.#client.tasks.unsubscribe(subscription);
    } catch {
      // It may not be followed, or there is no connection: looking at it now and then remains.
    }
  }

  #hear(event) {
    if (event.taskId !== this.#openId) return;
    if (event.type !== "progress") {
      this.look();
      return;
    }
    const known = this.#work.ofTask(event.taskId);
    const source = this.#opened?.assignedTo;
    if (!source || hasEnded(this.#opened) || (known && !known.replayed)) return; // a report says more than its event
    this.#work.report({ ...event, source, step: {} });
    Object.assign(this.#work.ofTask(event.taskId), { replayed: true, isTask: true });
    this.#changed();
  }

  showOpen() {
    const task = this.#opened;
    $("task-body").hidden = !task;
    if (!task) {
      fill($("task-title"), "Task");
      $("task-address").textContent = this.#openId;
      $("task-state").textContent = "";
      return;
    }
    const progress = this.#work.ofTask(task.taskId);
    fillNamed($("task-title"), titleOf(task));
    $("task-address").textContent = task.taskId;
    $("task-dot").dataset.status = task.status;
    $("task-state").textContent = stateText(task);
    const bar = $("task-bar");
    const moves = progress && !hasEnded(task);
    $("task-progress").hidden = !moves;
    if (moves) {
      fill($("task-summary"), visible(progress.summary, 300));
      $("task-percent").textContent = progress.part < 0 ? "" : `${Math.round(progress.part * 100)} %`;
      bar.classList.toggle("unknown", progress.part < 0 && task.status === "RUNNING");
      bar.firstElementChild.style.width = progress.part < 0 ? "" : `${progress.part * 100}%`;
      bar.setAttribute("aria-label", `Progress of ${isolated(titleOf(task))}`);
      if (progress.part < 0) bar.removeAttribute("aria-valuenow");
      else bar.setAttribute("aria-valuenow", String(Math.round(progress.part * 100)));
    }
    this.#showFacts(task);
    const result = resultText(task);
    $("task-result-box").hidden = !result;
    if ($("task-result").textContent !== result) $("task-result").textContent = result;
    this.#showForm(task);
  }

  #showFacts(task) {
    const { metadata } = task;
    const agent = task.assignedTo || task.target;
    const facts = [
      ["Why", asksPeople(task) ? "" : visible(metadata._queued_because ?? "", 300)],
      ["Error", visible(task.error, 1000)],
      ["Outcome", outcomeText(task)],
      ["Attempt", attemptText(task)],
      [task.assignedTo ? "Worker" : "For", agent && named(agent, 400)],
      ["Created by", task.creator && named(task.creator, 400)],
      ["Created", task.createdAt && short.format(task.createdAt)],
      ["Started", task.startedAt && short.format(task.startedAt)],
      ["Ended", task.completedAt && hasEnded(task) && short.format(task.completedAt)],
      ["Waits for", task.status === "WAITING_DEPENDENCY" ? visible(task.dependsOn.join(", "), 300) : ""],
      ["Below the task", visible(task.parentTaskId)],
      ...Object.entries(metadata)
        .filter(([name]) => !name.startsWith("_"))
        .sort()
        .slice(0, VALUES)
        .map(([name, value]) => [named(name), named(value, 300)]),
    ].filter(([, value]) => value);
    const cells = facts.flatMap(([name, value]) => [["dt", name], ["dd", value]]);
    reconcile($("task-facts"), cells.map(([tag, value], at) => ({ tag, value, at })), ({ tag, at }) => `${tag}${at}`,
      ({ tag }) => make(tag), (element, { value }) => fill(element, value));
  }

  // -- its form

  #showForm(task) {
    const asks = asksPeople(task);
    $("task-form").hidden = !asks;
    if (!asks) {
      this.#shownWait = "";
      return;
    }
    const { wait } = task;
    const may = mayAnswer(wait, this.#client);
    if (this.#shownWait !== waitKey(task)) {
      this.#shownWait = waitKey(task);
      this.#makeForm(task, may);
    }
    this.#enable();
  }

  #makeForm({ wait, assignedTo, pausedAt }, may) {
    const { form } = wait;
    const until = wait.timeoutMs && pausedAt ? new Date(pausedAt.getTime() + wait.timeoutMs) : null;
    fill($("task-asks"), named(assignedTo || "Its worker", 400), form ? " asks, in its own words" : " waits for an answer",
      until ? `, until ${short.format(until)}` : "");
    const pairs = Object.entries(wait.pairs).map(([name, value]) => `${visible(name)} = ${visible(value, 300)}`);
    $("task-question").textContent = form
      ? visible(form.question, WORDS, true)
      : pairs.length ? `It goes on with ${pairs.join(", ")}.` : "It goes on with any answer.";
    const who = $("task-who");
    who.hidden = may;
    who.textContent = may ? "" : `Only ${expectedName(wait.expectedPrincipal, this.#client.userId)} may answer.`;
    $("task-choices").hidden = !may || !form?.choices.length;
    $("task-choices").replaceChildren(make("legend", "", "Choose one"), ...(form?.choices ?? []).map(makeChoice));
    $("task-text-box").hidden = !may || !form?.text;
    fill($("task-text-label"), named(form?.textLabel || "Your answer", CHOICE));
    $("task-text").value = "";
    this.#checkText();
    $("task-buttons").hidden = !may;
    $("task-reject").hidden = !form;
    $("task-cancel").hidden = Boolean(form);
    $("task-cancel-note").hidden = Boolean(form) || !may;
    this.#fail("");
  }

  #checkText() {
    const { length } = $("task-text").value;
    const tooLong = length > LONGEST_ANSWER;
    $("task-text").setAttribute("aria-invalid", String(tooLong));
    const note = tooLong ? `It has ${counted(length)} characters; ${counted(LONGEST_ANSWER)} are allowed.` : "";
    $("task-text-note").hidden = !note;
    if ($("task-text-note").textContent !== note) $("task-text-note").textContent = note;
    return !tooLong;
  }

  #enable() {
    const off = this.#deciding || this.#client.state !== "open" || (this.#answered !== "" && this.#answered === this.#shownWait);
    for (const id of ["task-approve", "task-reject", "task-cancel"]) $(id).disabled = off;
  }

  #fail(text) {
    $("task-error").hidden = !text;
    $("task-error").textContent = text;
  }

  #say(text) {
    $("task-said").hidden = !text;
    $("task-said").textContent = text;
  }

  /** What the person has filled in, or null with the reason shown. */
  #filledIn(form, decision) {
    const answer = { decision };
    const choice = $("task-choices").querySelector("input:checked");
    if (decision === "approve" && form.choices.length && !choice) {
      this.#fail("Choose one first.");
      $("task-choices").querySelector("input").focus();
      return null;
    }
    if (choice) answer.choice = form.choices[Number(choice.value)];
    if (!this.#checkText()) {
      $("task-text").focus();
      return null;
    }
    if (form.text && $("task-text").value.trim()) answer.text = $("task-text").value.trim();
    return answer;
  }

  async #answer(decision) {
    const task = this.#opened;
    if (!task || this.#deciding || !asksPeople(task)) return;
    const { form } = task.wait;
    const key = waitKey(task);
    this.#fail("");
    const answer = form && this.#filledIn(form, decision);
    if (form && !answer) return;
    this.#deciding = true;
    this.#enable();
    try {
      const now = await this.#client.tasks.get(task.taskId);
      if (waitKey(now) !== key || !asksPeople(now)) {
        this.#opened = now;
        this.#say(endedText(now, "It does not wait for this any more"));
        return;
      }
      if (form) await this.#client.tasks.answer(now, answer);
      else await this.#client.tasks.sendInput(now.taskId, now.wait.pairs, { workspace: now.workspace });
      this.#answered = key;
      $("task-title").focus({ preventScroll: true });
      this.#say("Your answer is kept. The task goes on in a moment.");
      const after = await this.#whenTaken(task.taskId, key);
      if (this.#openId !== task.taskId) return;
      if (after) this.#say(this.#takenText(after, decision));
      else {
        this.#answered = "";
        this.#say("");
        this.#fail("The task still waits: it has not taken the answer.");
      }
    } catch (error) {
      this.#fail(visible(error.message, 500));
    } finally {
      this.#deciding = false;
      this.showOpen();
      this.#enable();
      this.look();
    }
  }

  /** The task when it does not wait any more; null when it still does after a while. */
  async #whenTaken(taskId, key) {
    const end = performance.now() + TAKEN_WITHIN_MS;
    while (performance.now() < end) {
      const task = await this.#client.tasks.get(taskId);
      if (waitKey(task) !== key || !asksPeople(task)) {
        if (this.#openId === taskId) this.#opened = task;
        return task;
      }
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    return null;
  }

  #takenText(task, decision) {
    const by = answeredBy(task);
    const mine = !by || by === this.#client.identity || by.startsWith(`us::${this.#client.userId}::`);
    if (!mine) return `${isolated(by, 400)} was faster: the task has taken that answer.`;
    return endedText(task, decision === "approve" ? "Approved" : "Rejected");
  }

  async #cancel() {
    const task = this.#opened;
    if (!task || this.#deciding) return;
    this.#fail("");
    this.#deciding = true;
    this.#enable();
    try {
      this.#opened = await this.#client.tasks.cancel(task.taskId, `rejected by ${this.#client.userId}`);
      $("task-title").focus({ preventScroll: true });
      this.#say("Cancelled.");
    } catch (error) {
      this.#fail(`The gateway does not let you cancel it: ${visible(error.message, 500)}`);
    } finally {
      this.#deciding = false;
      this.showOpen();
      this.look();
    }
  }
}

function endedText(task, what) {
  return hasEnded(task) ? `${what}. The task has ${task.status === "COMPLETED" ? "completed" : "ended"}.` : `${what}. The task ${stateText(task)}.`;
}

export const counted = (number) => new Intl.NumberFormat().format(number);

function makeItem() {
  const item = make("li");
  const button = make("button", "agent task-item");
  button.type = "button";
  const dot = make("span", "task-dot");
  dot.setAttribute("aria-hidden", "true");
  const bar = make("span", "bar");
  bar.append(make("span"));
  bar.hidden = true;
  button.append(dot, make("span", "name"), make("span", "note"), bar);
  item.append(button);
  return item;
}

function makeChoice(text, at) {
  const line = make("div", "choice-line");
  const input = make("input");
  input.type = "radio";
  input.name = "task-choice";
  input.value = String(at);
  input.id = `task-choice-${at}`;
  const label = make("label", "choice");
  label.htmlFor = input.id;
  label.append(named(text, CHOICE));
  line.append(input, label);
  return line;
}

/** Whether a text of a person fits into a message, and what to say if not. */
export function tooLong(text) {
  if (text.length <= LONGEST_TEXT) return "";
  return `This text has ${counted(text.length)} characters. A message may have ${counted(LONGEST_TEXT)}: shorten it by ${counted(text.length - LONGEST_TEXT)}.`;
}
