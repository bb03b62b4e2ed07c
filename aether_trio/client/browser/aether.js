/**
 * The browser's client of an Aether gateway: one ES module without a build step and without dependencies.
 *
 *     import { connect } from "/client/aether.js";
 *     const client = await connect({ userId: "maya", workspace: "default" });
 *     client.send("ag::default::guide::1", "hello", { type: "CHAT" });
 *     for await (const message of client.messages()) console.log(message.source, message.text());
 *
 * One client is one window of one user (us::user::window) on one WebSocket, which speaks the subprotocol
 * aether.v1.json: one text message is one UpstreamMessage or DownstreamMessage in proto3 JSON with the protocol's own
 * field names. The types are in aether.d.ts, the manual is docs/browser.md.
 *
 * What it holds to:
 * - Everything that waits is bounded: sends that are not confirmed (send() throws BUFFER_FULL), and messages that
 *   the page has not taken (the gateway keeps the others). Nothing is dropped without an error.
 * - A message is acknowledged when the page is done with it, and until then the gateway delivers it again to the next
 *   connection. This client drops what it has had, so only a page that went away may see a message twice.
 * - A send is kept until an answer of the gateway proves that it was committed or refused, and is written again after
 *   a reconnect. So what is not refused arrives at least once, and in order; what is refused is not sent again.
 * - After an end the client connects again, unless the close code says not to. Waits are drawn from the whole
 *   interval (full jitter), so that a gateway which starts again is not met by all windows at once.
 */

export const VERSION = "1";

const SUBPROTOCOL = "aether.v1.json.acks";
const NUMBERED_SENDS = "urn:aether-trio:numbered-sends"; // the refusal of the N-th send of a connection has the id send-N
const CREDENTIAL_RENEWAL = "urn:aether-trio:credential-renewal"; // the gateway says when the session ends, and takes fresh ones
const RENEW_EARLY_MS = 300_000; // before the end of a long session, to twice that
const RENEW_AGAIN_MS = 30_000;
const LONGEST_TIMER_MS = 2 ** 31 - 1; // a browser takes a longer one for none
const MAX_PAYLOAD_BYTES = 1024 * 1024; // the gateway's default; more would end the connection, not only the send
const MAX_MESSAGE_BYTES = 2 * 1024 * 1024; // likewise
const FIRST_BACKOFF_MS = 250;
const CONFIRM_AFTER_MS = 100; // sends are confirmed in groups
const DUPLICATE_PATIENCE_MS = 60_000; // a dead connection of our own holds the identity about 30 s at most
const FAILURE_GRACE_MS = 200; // a typed failure is followed by an ErrorResponse with the code, mostly at once
const LOCK_WAIT_MS = 500; // the page before a reload gives its lock back when it is gone
const KEPT_WINDOWS = 16; // per user and gateway, in a storage that tabs share
const KEPT_REFUSALS = 100;
const STATE_AFTER_MS = 20; // deliveries are acknowledged in groups
const KEPT_TOPICS = 1024; // whose last offsets are known
const HAD = Object.freeze({ done: true, size: 0 });

const STATUSES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
  "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
];
const FINAL_CLOSE_CODES = new Map([
  [1000, "CLOSED"], [1002, "PROTOCOL"], [1003, "PROTOCOL"], [1007, "PROTOCOL"], [1008, "PERMISSION_DENIED"],
  [1009, "PAYLOAD_TOO_LARGE"], [1010, "PROTOCOL"],
]);
const MESSAGE_TYPES = new Set([
  "MESSAGE_TYPE_UNSPECIFIED", "CHAT", "CONTROL", "TOOL_CALL", "EVENT", "METRIC", "OPAQUE",
]);
const PRINCIPAL_TYPES = new Set([
  "agent", "task", "user", "orchestrator", "workflow_engine", "metrics_bridge", "bridge", "service",
]);
const ACCESS_LEVELS = new Set(["READ", "READWRITE", "MANAGE", "ADMIN", "SUPERADMIN"]);
const REQUEST_STATUSES = new Set(["PENDING", "APPROVED", "DENIED", "EXPIRED", "CANCELLED"]);
const TASK_STATUSES = new Set([
  "QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "WAITING_INPUT", "WAITING_AUTHORITY", "WAITING_DEPENDENCY",
  "HIBERNATED", "REJECTED",
]);
const DECISIONS = new Set(["approve", "reject"]);
const NOT_ABOUT_A_SEND = new Set(["BACKPRESSURE"]);
/** Requests whose id has another name, because request_id says what they are about. */
const CLIENT_REQUEST_ID = new Set(["task_subscription_op", "authority_request_op", "submit_audit_event"]);

const DEFAULTS = {
  workspace: "",
  windowId: "",
  credentials: {},
  timeoutMs: 15_000,
  requestTimeoutMs: 15_000,
  attemptTimeoutMs: 10_000,
  heartbeatMs: 25_000,
  silenceMs: 30_000,
  maxBackoffMs: 30_000,
  maxUnconfirmedBytes: 4 * 1024 * 1024,
  maxBufferedBytes: 16 * 1024 * 1024,
  maxBufferedMessages: 10_000,
};

/**
 * Why something was refused, or failed. `code` is the protocol's (ERR_PERMISSION_DENIED, KV_ERROR, ...), the name of a
 * gRPC status when the gateway refused or ended the connection (UNAUTHENTICATED, ALREADY_EXISTS, ...), or one of the client's
 * own: TIMEOUT, DISCONNECTED, CLOSED, BUFFER_FULL, PAYLOAD_TOO_LARGE, PROTOCOL, REQUEST_FAILED.
 */
export class AetherError extends Error {
  constructor(code, message, { retryable = false, retryAfterMs = 0, requestId = "", closeCode = 0 } = {}) {
    super(message);
    this.name = "AetherError";
    this.code = code;
    this.retryable = retryable;
    this.retryAfterMs = retryAfterMs;
    this.requestId = requestId;
    this.closeCode = closeCode;
    /** flush(): what was refused since the last one, the first 100, and how many that were in all. */
    this.refusals = [];
    this.refusalCount = 0;
  }
}

/** The addresses of the protocol. */
export const topics = {
  agent: (workspace, implementation, specifier) => `ag::${workspace}::${implementation}::${specifier}`,
  agents: (workspace) => `ga::${workspace}`,
  service: (implementation, specifier) => ["sv", implementation, specifier].filter(Boolean).join("::"),
  user: (userId) => `uu::${userId}`,
  userIn: (userId, workspace) => `uw::${userId}::${workspace}`,
  users: (workspace) => `gu::${workspace}`,
  window: (userId, windowId) => `us::${userId}::${windowId}`,
};

// -- bytes ------------------------------------------------------------------------------------------------------------

const utf8 = new TextEncoder();

function bytesOf(payload) {
  if (typeof payload === "string") return utf8.encode(payload);
  if (payload instanceof Uint8Array) return payload;
  if (payload instanceof ArrayBuffer) return new Uint8Array(payload);
  if (ArrayBuffer.isView(payload)) return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength);
  if (payload instanceof Blob) throw new TypeError("a Blob has to be read first: await blob.arrayBuffer()");
  if (typeof payload?.then === "function") throw new TypeError("a payload cannot be a promise: await it first");
  const text = JSON.stringify(payload);
  if (text === undefined) throw new TypeError("a payload is a string, bytes, or a value that JSON can hold");
  return utf8.encode(text);
}

/** Half of a surrogate pair, as a slice of a string may end with, becomes U+FFFD: no UTF-8 can hold it. */
function wellFormed(text) {
  return new TextDecoder().decode(utf8.encode(text));
}

function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode.apply(null, bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

function fromBase64(text) {
  const raw = atob(text ?? "");
  const bytes = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at += 1) bytes[at] = raw.charCodeAt(at);
  return bytes;
}

// -- what cannot be right: the gateway would end the connection for it, and with it everything else --------------------

function whole(name, value) {
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new TypeError(`${name} is a whole number, 0 or more, not ${String(value)}`);
}

function textOf(name, value) {
  if (typeof value === "string") return wellFormed(value);
  throw new TypeError(`${name} is a string, not ${value === null ? "null" : typeof value}`);
}

function oneOf(known, name, value) {
  if (known.has(value)) return value;
  throw new TypeError(`${name} is one of ${[...known].join(", ")}, not ${String(value)}`);
}

/** The field of a message of the protocol, which is an object with one key. */
function fieldOf(message) {
  const names = Object.keys(message ?? {});
  if (names.length === 1 && typeof message[names[0]] === "object") return names[0];
  throw new TypeError("a message is an object with one field of UpstreamMessage: { session_op: { op: \"LIST\" } }");
}

function addressOf(given) {
  const url = new URL(given ?? "/v1/connect", import.meta.url);
  url.protocol = url.protocol.replace(/^http/, "ws");
  if (!/^wss?:$/.test(url.protocol)) throw new TypeError(`url: ${url.protocol} is not http:, https:, ws: or wss:`);
  if (url.username || url.password) throw new TypeError("url: credentials are an option of their own, no part of it");
  if (url.search || url.hash) throw new TypeError(`url: the gateway takes no ${url.search || url.hash}`);
  if (url.pathname === "/") url.pathname = "/v1/connect";
  return url;
}

function tally(sum, messages, bytes) {
  sum.messages += messages;
  sum.bytes += bytes;
}

/** Whether it is the place of a delivery: { topic, log, offset }. */
function placeIsKnown(place) {
  const { topic, log, offset } = place ?? {};
  return typeof topic === "string" && typeof log === "string" && Number.isSafeInteger(offset) && offset > 0;
}

function bound(count) {
  return Math.max(1, Math.min(Math.floor(count), Number.MAX_SAFE_INTEGER));
}

/** Milliseconds of a clock that no user sets. Never 0, which stands for "not yet". */
function now() {
  return performance.now() + 1;
}

function randomText(length) {
  const bytes = crypto.getRandomValues(new Uint8Array(length / 2)); // randomUUID is for secure contexts only
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A message as it was received. */
export class Message {
  constructor(wire, place) {
    /** Names the message for good: the same when it comes again, and in all windows that get it from one topic. */
    this.id = placeIsKnown(place) ? `${place.log}/${place.topic}/${place.offset}` : "";
    /** The topic that it was sent to: this window's, or one of several windows. */
    this.topic = place?.topic ?? "";
    this.source = wire.source_topic ?? "";
    this.payload = fromBase64(wire.payload);
    this.type = wire.message_type ?? "MESSAGE_TYPE_UNSPECIFIED";
    this.workspace = wire.workspace ?? "";
    this.onBehalfOf = wire.on_behalf_subject ?? null;
  }

  /** The payload as text; bytes that are not UTF-8 become U+FFFD. */
  text() {
    return new TextDecoder().decode(this.payload);
  }

  /** The payload as JSON; throws SyntaxError when it is none. */
  json() {
    return JSON.parse(this.text());
  }
}

function progressOf(wire) {
  const step = wire.step ?? {};
  return {
    source: wire.source ?? "",
    taskId: wire.task_id ?? "",
    state: wire.state ?? "",
    completion: Number.isFinite(wire.completion ?? 0) ? (wire.completion ?? 0) : -1, // NaN and Infinity come as text
    summary: wire.summary ?? "",
    step: {
      name: step.name ?? "",
      detail: step.detail ?? "",
      sequence: step.sequence ?? 0,
      total: step.total_steps ?? 0,
      type: step.step_type ?? "",
    },
    timestampMs: Number(wire.timestamp_ms ?? 0),
    workspace: wire.workspace ?? "",
    requestId: wire.request_id ?? "",
    metadata: wire.metadata ?? {},
    recipient: wire.recipient ?? "",
    kind: wire.kind ?? "PROGRESS_KIND_UNSPECIFIED",
  };
}

// -- which window this is ------------------------------------------------------------------------------------------------

function tabStorage() {
  try {
    return globalThis.sessionStorage ?? null;
  } catch {
    return null; // forbidden by the browser's settings
  }
}

/** Whether it is { windowId, sessionId } as this client writes it: what cannot be right would be refused at each load. */
function isWindow(one) {
  const { windowId, sessionId } = one ?? {};
  if (typeof windowId !== "string" || typeof sessionId !== "string") return false;
  const short = [windowId, sessionId].every((text) => utf8.encode(text).length <= 128);
  return short && /^(?!.*::)[^\s*>\p{Cc}]+$/u.test(windowId);
}

/**
 * The windows that a storage knows, so that a reload is the same window again, with its session to resume.
 *
 * Each window holds a lock of its name. So a duplicated tab, whose sessionStorage is a copy, does not become the same
 * window; and with localStorage a new tab becomes a window whose tab is gone. Locks exist in secure contexts
 * only (https and localhost); elsewhere a duplicated tab takes its original's session over.
 */
class Windows {
  constructor(storage, key) {
    this.storage = storage;
    this.key = key;
    this.tab = tabStorage();
  }

  /** { windowId, sessionId } each, the one used last first. */
  list() {
    try {
      const found = JSON.parse(this.storage?.getItem(this.key) ?? "[]");
      return Array.isArray(found) ? found.filter(isWindow) : [];
    } catch {
      return [];
    }
  }

  remember(windowId, sessionId) {
    const others = this.list().filter((one) => one.windowId !== windowId);
    this.#save([{ windowId, sessionId }, ...others].slice(0, KEPT_WINDOWS));
    try {
      this.tab?.setItem(`${this.key}#tab`, windowId);
    } catch {
      // The next reload is another window then.
    }
  }

  forget(windowId) {
    this.#save(this.list().filter((one) => one.windowId !== windowId));
  }

  #save(list) {
    try {
      this.storage?.setItem(this.key, JSON.stringify(list));
    } catch {
      // A full storage costs the resume after a reload, nothing else.
    }
  }

  /** Resolves with a function that gives the lock back, or null when another tab has it. */
  async lock(windowId, waitMs = 0) {
    if (!globalThis.navigator?.locks) return () => {};
    const options = waitMs ? { signal: AbortSignal.timeout(waitMs) } : { ifAvailable: true };
    return new Promise((resolve) => {
      navigator.locks
        .request(`${this.key}#${windowId}`, options, (lock) => {
          if (!lock) return resolve(null);
          return new Promise((release) => resolve(release));
        })
        .catch(() => resolve(null));
    });
  }

  /** { windowId, sessionId, release, stored }: the window that is wanted, one from before, or a new one. */
  async claim(wanted) {
    const known = this.list();
    if (wanted) {
      const release = await this.lock(wanted, LOCK_WAIT_MS);
      // Without the lock another tab is this window. Not naming its session leaves it alone: ALREADY_EXISTS.
      const before = release && known.find((one) => one.windowId === wanted);
      return { windowId: wanted, sessionId: before?.sessionId ?? "", release, stored: false };
    }
    const mine = this.tab?.getItem(`${this.key}#tab`);
    const own = known.filter((one) => one.windowId === mine);
    const others = globalThis.navigator?.locks ? known.filter((one) => one.windowId !== mine) : [];
    for (const [list, waitMs] of [[own, LOCK_WAIT_MS], [others, 0]]) {
      for (const one of list) {
        const release = await this.lock(one.windowId, waitMs);
        if (release) return { ...one, release, stored: true };
      }
    }
    return this.fresh();
  }

  async fresh() {
    const windowId = randomText(12);
    return { windowId, sessionId: "", release: await this.lock(windowId), stored: false };
  }
}

// -- the client -------------------------------------------------------------------------------------------------------

/** Connect; resolves with a Client that is open. Rejects with an AetherError. */
export function connect(options) {
  return new Client(options).open();
}

/** How long the session of a ConnectionAck lasts, 0 for ever, and why it does not go on. */
const renewalOf = (ack) => {
  const one = (ack.negotiated_extensions ?? []).find(({ uri }) => uri === CREDENTIAL_RENEWAL) ?? {};
  return { supported: one.supported ?? false, leftMs: Number(one.version) || 0, reason: one.rejection_reason ?? "" };
};

export class Client extends EventTarget {
  #options;
  #url;
  #windows = null;
  #window = null;
  #state = "new";
  #socket = null;
  #opened = null; // { promise, resolve, reject }
  #everOpen = false;
  #lostAt = 0;
  #attempt = 0;
  #lastError = null;
  #forced = null;
  #asking = false; // for credentials
  #endsAt = 0; // of this connection's session, by its credential; 0: never
  #renewing = false; // credentials that were shown in this connection have no answer yet
  #timers = {};
  #abort = new AbortController();

  #workspace = "";
  #session = null;
  #held = false; // sends wait while the workspace is switched
  #switching = Promise.resolve();

  #sequence = 0;
  #outgoing = []; // sends and requests that are not written, in the order of the calls
  #unconfirmed = []; // sends that are written
  #sends = 0; // written by this connection, which the gateway counts, too
  #unconfirmedBytes = 0; // of both
  #confirming = false;
  #flushes = []; // { last, resolve, reject }
  #refusals = []; // the first of them, since the last flush
  #refusalCount = 0; // all of them
  #entering = null; // the refusals of a workspace switch

  #requests = new Map(); // by id
  #idPrefix = randomText(8);
  #requestCount = 0;

  #inbox = [];
  #inboxAt = 0;
  #inboxBytes = 0;
  #takers = [];
  #readers = 0;
  #listeners = new WeakMap();
  #heard = false;

  #log = ""; // whose offsets #seen has
  #seen = new Map(); // the last offset of each topic
  #open = new Map(); // deliveries that the page is not done with, by offset and topic
  #arrivals = []; // of this connection
  #arrivalsAt = 0;
  #arrivalBytes = 0; // of those that are not done
  #connection = 0; // the number of this one
  #undone = { messages: 0, bytes: 0 }; // what the page has and is not done with
  #kept = { messages: 0, bytes: 0 }; // of that, what this connection has not brought, or not yet
  #doneCount = 0; // of this connection's deliveries the first so many are done
  #statedCount = 0; // ... and the gateway was told so
  #statedAt = 0;

  #heardAt = 0;
  #counts = { sent: 0, received: 0, reconnections: 0, duplicates: 0 };

  constructor(options = {}) {
    super();
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this.#options = { ...DEFAULTS, storage: tabStorage(), ...given };
    if (!this.#options.userId) throw new TypeError("connect() needs a userId");
    for (const name of ["userId", "windowId", "workspace"]) this.#options[name] = textOf(name, this.#options[name]);
    this.#url = addressOf(this.#options.url);
    this.#workspace = this.#options.workspace;
    this.kv = new KeyValues(this);
    this.checkpoints = new Checkpoints(this);
    this.sessions = new Sessions(this);
    this.authorityRequests = new AuthorityRequests(this);
    this.grants = new Grants(this);
    this.tasks = new Tasks(this);
    this.agents = new Agents(this);
  }

  // -- what it is

  /** "new", "connecting", "open", "reconnecting" or "closed"; see docs/browser.md. */
  get state() {
    return this.#state;
  }

  get url() {
    return this.#url.href;
  }

  get userId() {
    return this.#options.userId;
  }

  get windowId() {
    return this.#window?.windowId ?? "";
  }

  /** This window's own topic, which is also its identity. */
  get identity() {
    return topics.window(this.userId, this.windowId);
  }

  get workspace() {
    return this.#workspace;
  }

  /** { id, resumed, since, reconnections, serverVersion } of the present session; null before the first. */
  get session() {
    return this.#session;
  }

  /** Counters since this client was made, and what waits now. */
  statistics() {
    return {
      ...this.#counts,
      unconfirmed: this.#unconfirmed.length + this.#outgoing.filter((one) => one.sequence).length,
      unconfirmedBytes: this.#unconfirmedBytes,
      buffered: this.#inbox.length - this.#inboxAt,
      bufferedBytes: this.#inboxBytes,
    };
  }

  // -- life

  /** Connect; once. Resolves with this client when it is open, and rejects with an AetherError. */
  async open() {
    if (this.#state !== "new") throw new TypeError("a client opens once; make another one");
    this.#opened = deferred();
    this.#setState("connecting");
    this.#options.signal?.addEventListener("abort", () => this.close(), { signal: this.#abort.signal });
    const { signal } = this.#abort;
    globalThis.addEventListener?.("online", () => this.#hurry(), { signal }); // hidden or not: a hidden page may notify
    const looked = () => globalThis.document.visibilityState === "hidden" || this.#hurry();
    globalThis.document?.addEventListener("visibilitychange", looked, { signal });
    globalThis.addEventListener?.("pagehide", () => this.#stateDeliveries(), { signal });
    this.#timers.open = setTimeout(() => this.#finish(this.#unreachable()), this.#options.timeoutMs);
    const windows = new Windows(this.#options.storage, `aether:${this.#url.host}${this.#url.pathname}:${this.userId}`);
    this.#windows = windows;
    this.#window = await windows.claim(this.#options.windowId);
    if (this.#state === "closed") this.#window.release?.();
    else if (this.#options.signal?.aborted) this.close();
    else this.#dial();
    return this.#opened.promise;
  }

  /** Resolves when the client is open (at once if it is); rejects when it has ended. */
  async whenOpen() {
    while (this.#state !== "open") {
      if (this.#state === "closed") throw this.#lastError ?? closedError();
      await new Promise((resolve) => this.addEventListener("state", resolve, { once: true }));
    }
  }

  /** Do not wait for the next try. Does nothing unless it is between two tries. */
  reconnectNow() {
    if (this.#timers.retry) this.#dial();
  }

  /**
   * End it. What was received and not read is still in messages(). Sends that were not flushed may not have arrived.
   * `forget` also forgets the window, so that the next one is new.
   */
  close({ forget = false } = {}) {
    if (forget && this.#window) this.#windows?.forget(this.#window.windowId);
    this.#finish(null);
  }

  async #dial() {
    clearTimeout(this.#timers.retry);
    this.#timers.retry = undefined;
    if (this.#asking) return;
    let credentials = this.#options.credentials;
    try {
      this.#asking = true;
      if (typeof credentials === "function") credentials = await this.#inTime(credentials());
    } catch (error) {
      const code = error?.code === "TIMEOUT" ? "TIMEOUT" : "UNAUTHENTICATED";
      this.#retry(new AetherError(code, `credentials(): ${error?.message ?? error}`, { retryable: true }));
      return;
    } finally {
      this.#asking = false;
    }
    if (this.#state === "closed" || this.#socket) return;
    let socket;
    try {
      socket = new WebSocket(this.#url, SUBPROTOCOL);
    } catch (error) { // a page that came by https: may not use ws:
      this.#finish(new AetherError("PERMISSION_DENIED", `the browser refuses ${this.#url.href}: ${error.message}`));
      return;
    }
    this.#socket = socket;
    this.#timers.attempt = setTimeout(
      () => this.#drop("TIMEOUT", "the gateway did not answer the handshake in time"),
      this.#options.attemptTimeoutMs,
    );
    socket.onopen = () => {
      this.#sends = 0;
      const { windowId, sessionId } = this.#window;
      this.#transmit({
        init: {
          user: { user_id: this.userId, window_id: windowId },
          credentials: credentials ?? {},
          resume_session_id: sessionId,
          client_sdk: "aether.js",
          client_version: VERSION,
          extensions: [{ uri: NUMBERED_SENDS }, ...(typeof this.#options.credentials === "function" ? [{ uri: CREDENTIAL_RENEWAL }] : [])],
        },
      });
      this.#stateDeliveries();
    };
    socket.onmessage = (event) => {
      if (socket === this.#socket) this.#receive(event.data);
    };
    socket.onclose = (event) => {
      if (socket === this.#socket) this.#ended(event.code, event.reason);
    };
  }

  /** What the page's own function resolves with, or TIMEOUT: one that hangs must not be the end of all tries. */
  async #inTime(promise) {
    const { attemptTimeoutMs } = this.#options;
    let timer;
    const late = new Promise((_, reject) => {
      const why = new AetherError("TIMEOUT", `nothing within ${attemptTimeoutMs} ms`);
      timer = setTimeout(() => reject(why), attemptTimeoutMs);
    });
    try {
      return await Promise.race([promise, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Leave a socket that says nothing: its closing handshake would say nothing either. */
  #drop(code, why) {
    const socket = this.#socket;
    if (!socket) return;
    socket.close();
    this.#ended(0, why, code);
  }

  #ended(closeCode, reason, code) {
    this.#socket = null;
    for (const name of ["attempt", "confirm", "heartbeat", "renewal"]) clearTimeout(this.#timers[name]);
    this.#confirming = this.#renewing = false;
    this.#forgetArrivals();
    const error = this.#whyEnded(closeCode, reason, code);
    const isOnce = (one) => Boolean(one.promised?.once);
    this.#loseSends(this.#unconfirmed.filter(isOnce), error);
    this.#outgoing = [...this.#unconfirmed.filter((one) => !isOnce(one)), ...this.#outgoing];
    this.#unconfirmed = [];
    this.#loseAnswers(error);
    if (this.#everOpen) this.#lostAt ||= now();
    if (error.retryable) this.#retry(error);
    else if (error.code !== "ALREADY_EXISTS") this.#finish(error);
    else if (!this.#everOpen && this.#window.stored) this.#becomeAnother();
    else if (this.#everOpen && now() - this.#lostAt < DUPLICATE_PATIENCE_MS) this.#retry(error);
    else this.#finish(error);
  }

  /** They may have arrived, and are not sent again. */
  #loseSends(sends, error) {
    for (const { text, promised } of sends) {
      this.#unconfirmedBytes -= text.length;
      const what = `${error.message} (before the send was confirmed, so whether it arrived is not known)`;
      promised.reject(new AetherError("DISCONNECTED", what, { retryable: true }));
    }
  }

  #loseAnswers(error) {
    const code = error.retryable ? "DISCONNECTED" : error.code;
    const what = `${error.message} (before the answer came, so whether it was done is not known)`;
    for (const request of [...this.#requests.values()]) {
      if (request.written) this.#settle(request, new AetherError(code, what, { ...error, requestId: request.id }));
    }
  }

  #whyEnded(closeCode, reason, code) {
    if (this.#forced) return new AetherError("CANCELLED", this.#forced, { closeCode });
    if (code) return new AetherError(code, reason, { retryable: true });
    if (closeCode >= 4200 && closeCode < 4300) {
      const status = STATUSES[closeCode - 4200] ?? "UNKNOWN";
      return new AetherError(status, reason || `the gateway refused the connection: ${status}`, { closeCode });
    }
    if (closeCode >= 4100 && closeCode < 4200) {
      const status = STATUSES[closeCode - 4100] ?? "UNKNOWN";
      return new AetherError(status, reason || `the gateway ended the connection: ${status}`, { retryable: true, closeCode });
    }
    const final = FINAL_CLOSE_CODES.get(closeCode);
    if (final) return new AetherError(final, reason || `the gateway closed the connection (${closeCode})`, { closeCode });
    const error = this.#unreachable();
    error.closeCode = closeCode;
    return this.#session ? new AetherError("UNAVAILABLE", reason || "the connection was cut", error) : error;
  }

  #unreachable() {
    if (this.#lastError) return this.#lastError;
    // A browser does not tell a page why an upgrade failed.
    const origin = globalThis.location?.origin ?? "this origin";
    const what = `cannot connect to ${this.#url.href}: no gateway answers there, or it does not allow pages of ${origin}`;
    return new AetherError("UNAVAILABLE", what, { retryable: true });
  }

  #retry(error) {
    if (this.#state === "closed") return;
    this.#lastError = error;
    this.#attempt += 1;
    const limit = Math.min(this.#options.maxBackoffMs, FIRST_BACKOFF_MS * 2 ** Math.min(this.#attempt - 1, 20));
    const retryInMs = Math.round(Math.random() * limit);
    this.#timers.retry = setTimeout(() => this.#dial(), retryInMs);
    this.#setState(this.#everOpen ? "reconnecting" : "connecting", { error, attempt: this.#attempt, retryInMs });
  }

  /** The page is visible again, or the network is back: do not wait any longer. */
  #hurry() {
    this.reconnectNow();
    if (this.#state === "open" && now() - this.#heardAt > 2000) this.#confirm();
  }

  /** The window from the storage is connected elsewhere, and it is not ours to end: be a new one. */
  async #becomeAnother() {
    const before = this.#window;
    this.#windows.forget(before.windowId);
    before.release?.();
    this.#window = await this.#windows.fresh();
    if (this.#state !== "closed") this.#dial();
  }

  #finish(error) {
    if (this.#state === "closed") return;
    const started = this.#state !== "new";
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
    this.#abort.abort();
    if (this.#doneCount !== this.#statedCount) this.#stateDeliveries();
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
    this.#lastError = error;
    const why = error ?? closedError();
    for (const request of [...this.#requests.values()]) this.#settle(request, why);
    for (const flush of this.#flushes.splice(0)) flush.reject(why);
    for (const one of [...this.#unconfirmed, ...this.#outgoing]) one.promised?.reject(why);
    this.#outgoing = [];
    this.#unconfirmed = [];
    this.#window?.release?.();
    this.#setState("closed", { error });
    if (error) this.#emit("error", error);
    if (started) this.#opened.reject(why);
    for (const taker of this.#takers.splice(0)) taker();
  }

  #setState(state, detail = {}) {
    const previous = this.#state;
    this.#state = state;
    this.#emit("state", { state, previous, error: null, attempt: 0, retryInMs: 0, ...detail });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // -- from the gateway

  #receive(text) {
    let wire;
    let message;
    try {
      wire = JSON.parse(text);
      message = wire.msg && new Message(wire.msg, wire.delivery);
    } catch {
      this.#finish(new AetherError("PROTOCOL", "the gateway sent something that is not understood"));
      return;
    }
    this.#heardAt = now();
    if (message) this.#deliver(message, wire.delivery);
    else if (wire.progress_update) this.#emit("progress", progressOf(wire.progress_update));
    else if (wire.authority_request_event) this.#emit("authority_request", requestEventOf(wire.authority_request_event));
    else if (wire.task_event) this.#emit("task_event", taskEventOf(wire.task_event));
    else if (wire.connection_ack && this.#renewing) this.#renewed(renewalOf(wire.connection_ack));
    else if (wire.connection_ack) this.#acknowledged(wire.connection_ack);
    else if (wire.error) this.#refused(wire.error);
    else if (wire.signal) this.#signalled(wire.signal);
    else this.#answered(wire);
  }

  #signalled(wire) {
    const force = (wire.type ?? "FORCE_DISCONNECT") === "FORCE_DISCONNECT";
    if (force) this.#forced = wire.reason || "disconnected by the gateway";
    this.#emit("signal", { type: force ? "FORCE_DISCONNECT" : "GRACEFUL_DISCONNECT", reason: wire.reason ?? "" });
  }

  #refused(wire) {
    const error = new AetherError(wire.code ?? "ERR_INTERNAL", wire.message ?? "", {
      retryable: wire.retryable ?? false,
      retryAfterMs: Number(wire.retry_after_ms ?? 0),
      requestId: wire.request_id ?? "",
    });
    if (error.requestId) {
      const request = this.#requests.get(error.requestId);
      if (request) this.#refuseRequest(request, error);
      if (request || error.requestId.startsWith(this.#idPrefix)) return;
    }
    const number = Number(/^send-(\d+)$/.exec(error.requestId)?.[1] ?? 0);
    if (number) {
      error.requestId = ""; // the number says nothing to a page
      if (this.#refusedSend(number, error)) return;
    }
    if (number || (!error.requestId && !NOT_ABOUT_A_SEND.has(error.code))) { // a gateway that does not count gives no number
      if (this.#entering && !number) {
        this.#entering.push(error);
        return;
      }
      this.#refusalCount += 1;
      if (this.#refusals.length < KEPT_REFUSALS) this.#refusals.push(error);
    }
    this.#emit("error", error);
  }

  /** This send of the present connection is settled: another connection must not repeat it. Returns whether one waits for it. */
  #refusedSend(number, error) {
    const at = this.#unconfirmed.findIndex((one) => one.number === number);
    if (at < 0) return false;
    const [{ text, promised }] = this.#unconfirmed.splice(at, 1);
    this.#unconfirmedBytes -= text.length;
    promised?.reject(error);
    return Boolean(promised);
  }

  #answered(wire) {
    const name = Object.keys(wire).find((key) => key !== "active_extensions") ?? "";
    const value = wire[name] ?? {};
    const request = this.#requests.get(value.client_request_id ?? "") ?? this.#requests.get(value.request_id ?? "");
    if (!request) {
      this.#emit("downstream", wire);
    } else if (succeeded(name, value)) {
      this.#settle(request, null, wire);
    } else {
      // The ErrorResponse behind it knows the code.
      const text = value.error || value.error_message || value.message || `${name}: the request failed`;
      const error = new AetherError(value.error_code || "REQUEST_FAILED", text, { requestId: request.id });
      clearTimeout(request.timer);
      request.timer = setTimeout(() => this.#refuseRequest(request, error), FAILURE_GRACE_MS);
    }
  }

  #refuseRequest(request, error) {
    request.refused = true;
    this.#settle(request, error);
  }

  // -- the end of the credentials

  /** Ask for fresh credentials when a part of the session's time is left. */
  #planRenewal({ supported, leftMs }) {
    clearTimeout(this.#timers.renewal);
    this.#endsAt = leftMs && now() + leftMs;
    if (!supported || !leftMs || typeof this.#options.credentials !== "function") return;
    const early = Math.min(leftMs / 5, RENEW_EARLY_MS) * (1 + Math.random());
    this.#timers.renewal = setTimeout(() => this.#renew(), Math.min(leftMs - early, LONGEST_TIMER_MS));
  }

  async #renew() {
    const socket = this.#socket;
    const left = Math.max(this.#endsAt - now(), 0);
    this.#timers.renewal = setTimeout(() => this.#renew(), Math.max(Math.min(left / 5, RENEW_AGAIN_MS), FIRST_BACKOFF_MS));
    try {
      const credentials = await this.#inTime(this.#options.credentials());
      if (socket !== this.#socket || this.#state !== "open") return;
      this.#renewing = true;
      this.#transmit({ init: { credentials: credentials ?? {} } });
    } catch (error) {
      if (socket === this.#socket) this.#notRenewed(`credentials(): ${error?.message ?? error}`);
    }
  }

  #renewed({ supported, leftMs, reason }) {
    this.#renewing = false;
    // The same end is no refusal: the page has no later credentials yet, and is asked again.
    if (!supported) this.#notRenewed(reason);
    else if (!leftMs || now() + leftMs > this.#endsAt + 1000) this.#planRenewal({ supported, leftMs });
  }

  /** The connection goes on to its end, and then the page is asked for the next one. */
  #notRenewed(why) {
    this.#emit("error", new AetherError("UNAUTHENTICATED", `the session was not renewed: ${why}`, { retryable: true }));
  }

  async #acknowledged(ack) {
    this.#planRenewal(renewalOf(ack));
    this.#window.sessionId = ack.session_id ?? "";
    this.#windows.remember(this.#window.windowId, this.#window.sessionId);
    this.#session = {
      id: this.#window.sessionId,
      resumed: ack.resumed ?? false,
      since: Number(ack.initial_connection_unix_ms ?? 0),
      reconnections: ack.reconnection_count ?? 0,
      serverVersion: ack.server_version ?? "",
    };
    const socket = this.#socket;
    try {
      if (this.#workspace) await this.#enter(this.#workspace);
    } catch (error) {
      if (socket !== this.#socket) return; // it has ended, and is told elsewhere
      if (error.retryable || error.code === "TIMEOUT") this.#drop(error.code, error.message);
      else this.#finish(error);
      return;
    }
    if (socket === this.#socket) this.#ready();
  }

  #ready() {
    clearTimeout(this.#timers.attempt);
    clearTimeout(this.#timers.open);
    if (this.#everOpen) this.#counts.reconnections += 1;
    this.#everOpen = true;
    this.#lostAt = 0;
    this.#attempt = 0;
    this.#lastError = null;
    this.#setState("open");
    this.#opened.resolve(this);
    this.#armHeartbeat();
    this.#write();
  }

  #armHeartbeat() {
    const { heartbeatMs } = this.#options;
    if (!heartbeatMs) return;
    this.#timers.heartbeat = setTimeout(() => {
      if (now() - this.#heardAt >= heartbeatMs) this.#confirm();
      this.#armHeartbeat();
    }, heartbeatMs);
  }

  // -- messages

  addEventListener(type, listener, options) {
    super.addEventListener(type, type === "message" ? this.#hearing(listener) : listener, options);
    // Hand out what came before the first listener.
    if (type === "message") queueMicrotask(() => this.#tellBacklog());
  }

  removeEventListener(type, listener, options) {
    super.removeEventListener(type, type === "message" ? this.#hearing(listener) : listener, options);
  }

  /** The listener, which notes that it heard. A message without a listener waits for messages(). */
  #hearing(listener) {
    if (!listener) return listener;
    let wrapped = this.#listeners.get(listener);
    if (!wrapped) {
      wrapped = (event) => {
        this.#heard = true;
        return typeof listener === "function" ? listener.call(this, event) : listener.handleEvent(event);
      };
      this.#listeners.set(listener, wrapped);
    }
    return wrapped;
  }

  #tell(message) {
    this.#heard = false;
    this.#emit("message", message);
    return this.#heard;
  }

  #tellBacklog() {
    while (!this.#readers && this.#inboxAt < this.#inbox.length) {
      const { message, arrival } = this.#inbox[this.#inboxAt];
      if (!this.#tell(message)) return;
      this.#takeNow();
      this.#done(arrival);
    }
  }

  /**
   * The messages, for `for await`. Each message goes to one of the iterators (mostly there is one). Ends when the client
   * was closed, and throws its AetherError when it ended otherwise. The page is done with a message when it asks for the
   * next one, or leaves the loop.
   */
  async *messages() {
    this.#readers += 1;
    try {
      for (;;) {
        while (this.#inboxAt < this.#inbox.length) {
          const { message, arrival } = this.#takeNow();
          try {
            yield message;
          } finally {
            this.#done(arrival);
          }
        }
        if (this.#state === "closed") break;
        await new Promise((resolve) => this.#takers.push(resolve));
      }
    } finally {
      this.#readers -= 1;
    }
    if (this.#lastError) throw this.#lastError;
  }

  #deliver(message, place) {
    if (!placeIsKnown(place)) {
      this.#finish(new AetherError("PROTOCOL", "the gateway has sent a message and not said where it stands"));
      return;
    }
    const { maxBufferedMessages, maxBufferedBytes } = this.#options;
    const waiting = this.#arrivals.length - this.#arrivalsAt;
    if (waiting >= bound(maxBufferedMessages) || this.#arrivalBytes >= bound(maxBufferedBytes)) {
      this.#finish(new AetherError("PROTOCOL", "the gateway has sent more messages than there was room for"));
      return;
    }
    const arrival = this.#arrived(place, message.payload.length);
    if (!arrival) return;
    this.#counts.received += 1;
    if (this.#tell(message) && !this.#readers) {
      this.#done(arrival);
      return;
    }
    this.#inbox.push({ message, arrival });
    this.#inboxBytes += message.payload.length;
    this.#takers.shift()?.();
  }

  #takeNow() {
    const taken = this.#inbox[this.#inboxAt];
    this.#inbox[this.#inboxAt] = undefined;
    this.#inboxAt += 1;
    this.#inboxBytes -= taken.message.payload.length;
    if (this.#inboxAt > 256 && this.#inboxAt * 2 > this.#inbox.length) {
      this.#inbox = this.#inbox.slice(this.#inboxAt);
      this.#inboxAt = 0;
    }
    return taken;
  }

  /**
   * A delivery, of which the gateway says where it stands. Returns what is to be marked when the page is done with it, or
   * null when this client has had it before: over another connection, which ended before the acknowledgement.
   */
  #arrived({ topic, log, offset }, size) {
    if (log !== this.#log) { // another gateway's data: its offsets are of other messages
      this.#log = log;
      this.#seen.clear();
      this.#open.clear();
    }
    const name = `${offset} ${topic}`;
    const last = this.#seen.get(topic) ?? 0;
    this.#seen.delete(topic); // and is the latest again
    this.#seen.set(topic, Math.max(last, offset));
    if (this.#seen.size > KEPT_TOPICS) this.#seen.delete(this.#seen.keys().next().value);
    if (offset <= last || this.#open.has(name)) {
      this.#counts.duplicates += 1;
      this.#here(this.#open.get(name) ?? HAD);
      this.#advance();
      return null;
    }
    const arrival = { name, log, size, connection: this.#connection, done: false };
    tally(this.#undone, 1, size);
    this.#open.set(name, arrival);
    this.#here(arrival);
    return arrival;
  }

  /** This connection has brought it. */
  #here(arrival) {
    this.#arrivals.push(arrival);
    this.#arrivalBytes += arrival.size;
    if (arrival.done || arrival.connection === this.#connection) return;
    arrival.connection = this.#connection;
    tally(this.#kept, -1, -arrival.size);
  }

  #done(arrival) {
    if (!arrival || arrival.done) return;
    arrival.done = true;
    tally(this.#undone, -1, -arrival.size);
    const kept = arrival.connection !== this.#connection;
    if (kept) tally(this.#kept, -1, -arrival.size);
    if (this.#open.get(arrival.name) === arrival) this.#open.delete(arrival.name);
    this.#advance(kept);
  }

  /** What is done up to the first that is not. `freed`: there is room again of what an earlier connection has brought. */
  #advance(freed = false) {
    while (this.#arrivals[this.#arrivalsAt]?.done) {
      this.#arrivalBytes -= this.#arrivals[this.#arrivalsAt].size;
      this.#arrivals[this.#arrivalsAt] = undefined;
      this.#arrivalsAt += 1;
      this.#doneCount += 1;
    }
    if (this.#arrivalsAt > 256 && this.#arrivalsAt * 2 > this.#arrivals.length) {
      this.#arrivals = this.#arrivals.slice(this.#arrivalsAt);
      this.#arrivalsAt = 0;
    }
    if (!freed && this.#doneCount === this.#statedCount) return;
    const many = (this.#doneCount - this.#statedCount) * 4 >= this.#options.maxBufferedMessages;
    // Timers of a hidden page come once a minute, so messages do not wait for one.
    if (many || now() - this.#statedAt >= STATE_AFTER_MS) this.#stateDeliveries();
    else this.#timers.state ??= setTimeout(() => this.#stateDeliveries(), STATE_AFTER_MS);
  }

  /** Tell the gateway what the page is done with, and how much it has room for. */
  #stateDeliveries() {
    clearTimeout(this.#timers.state);
    this.#timers.state = undefined;
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#statedAt = now();
    this.#statedCount = this.#doneCount;
    const { maxBufferedMessages: messages, maxBufferedBytes: bytes } = this.#options;
    const room = (most, kept) => Math.max(0, bound(most) - kept);
    const kept = this.#kept;
    this.#transmit({
      deliveries: { done: this.#doneCount, messages: room(messages, kept.messages), bytes: room(bytes, kept.bytes) },
    });
  }

  /**
   * A connection has ended: what it has brought and the page is not done with comes again, except broadcasts. Either
   * way it takes room of the next one until then.
   */
  #forgetArrivals() {
    this.#connection += 1;
    Object.assign(this.#kept, this.#undone);
    this.#arrivalBytes = 0;
    clearTimeout(this.#timers.state);
    this.#timers.state = undefined;
    this.#arrivals = [];
    this.#arrivalsAt = this.#doneCount = this.#statedCount = 0;
  }

  // -- sends

  /**
   * Send to a topic; `payload` is a string, bytes, or a value for JSON. Nothing is answered when it succeeds: see flush().
   * While the client is not open it waits and is sent then. Throws AetherError BUFFER_FULL, PAYLOAD_TOO_LARGE or CLOSED.
   */
  send(topic, payload, options) {
    this.#queue(topic, payload, options, null);
  }

  /**
   * Send, and wait until it is committed, also over a reconnect. Rejects with its refusal, of which flush() says nothing. One
   * that is to be sent `once` is not sent again after a cut: it rejects with DISCONNECTED when it may have arrived.
   */
  async sendAndConfirm(topic, payload, { once = false, ...options } = {}) {
    const promised = { ...deferred(), once };
    this.#queue(topic, payload, options, promised);
    return promised.promise;
  }

  #queue(topic, payload, { type = "OPAQUE", appWorkspace = "" } = {}, promised) {
    this.#mustLive();
    const bytes = bytesOf(payload);
    if (bytes.length > MAX_PAYLOAD_BYTES) {
      throw new AetherError("PAYLOAD_TOO_LARGE", `the payload has ${bytes.length} bytes; ${MAX_PAYLOAD_BYTES} are allowed`);
    }
    const wire = { target_topic: textOf("topic", topic), payload: toBase64(bytes), message_type: type };
    oneOf(MESSAGE_TYPES, "type", type);
    if (appWorkspace) wire.app_workspace = textOf("appWorkspace", appWorkspace);
    const text = JSON.stringify({ send: wire });
    if (this.#unconfirmedBytes + text.length > this.#options.maxUnconfirmedBytes) {
      const what = "too much is waiting for the gateway: await flush() now and then";
      throw new AetherError("BUFFER_FULL", what, { retryable: true });
    }
    this.#unconfirmedBytes += text.length;
    this.#sequence += 1;
    this.#counts.sent += 1;
    this.#outgoing.push({ text, sequence: this.#sequence, send: true, number: 0, promised });
    this.#write();
  }

  /** To an agent of this window's workspace, or of another one. */
  sendToAgent(implementation, specifier, payload, { workspace = this.#workspace, ...options } = {}) {
    this.send(topics.agent(workspace, implementation, specifier), payload, options);
  }

  /** To all agents that are connected in the workspace. */
  sendToAgents(payload, { workspace = this.#workspace, ...options } = {}) {
    this.send(topics.agents(workspace), payload, options);
  }

  /** To all windows of a user that are in the workspace, this user's own and this window included. */
  sendToUser(userId, payload, { workspace = this.#workspace, ...options } = {}) {
    this.send(topics.userIn(userId, workspace), payload, options);
  }

  /** To one window. */
  sendToWindow(userId, windowId, payload, options = {}) {
    this.send(topics.window(userId, windowId), payload, options);
  }

  /** To all windows that are in the workspace. */
  sendToUsers(payload, { workspace = this.#workspace, ...options } = {}) {
    this.send(topics.users(workspace), payload, options);
  }

  /** To a service; without a specifier to any instance. */
  sendToService(implementation, specifier, payload, options = {}) {
    this.send(topics.service(implementation, specifier), payload, options);
  }

  /**
   * Wait until everything that was sent before is committed, also over a reconnect. Rejects with the first refusal since the
   * last flush (the first 100 are in its `refusals`), with TIMEOUT, or when the client ends.
   */
  flush({ timeoutMs = 0 } = {}) {
    if (this.#state === "closed") return Promise.reject(this.#lastError ?? closedError());
    const flush = { ...deferred(), last: this.#sequence };
    this.#flushes.push(flush);
    if (!this.#unconfirmed.length && !this.#outgoing.some((one) => one.sequence)) this.#confirmed();
    else if (this.#state === "open") this.#confirm();
    if (timeoutMs) {
      const timer = setTimeout(() => {
        this.#flushes = this.#flushes.filter((one) => one !== flush);
        flush.reject(new AetherError("TIMEOUT", "the gateway has not confirmed it in time", { retryable: true }));
      }, timeoutMs);
      flush.promise.then(() => clearTimeout(timer), () => clearTimeout(timer));
    }
    return flush.promise;
  }

  #mustLive() {
    if (this.#state === "closed") throw this.#lastError ?? closedError();
  }

  #transmit(wire) {
    this.#socket.send(typeof wire === "string" ? wire : JSON.stringify(wire));
  }

  #write() {
    if (this.#state !== "open" || this.#held) return;
    for (const one of this.#outgoing.splice(0)) {
      this.#transmit(one.text);
      one.written = true;
      if (one.send) one.number = this.#sends += 1;
      if (one.sequence) this.#unconfirmed.push(one);
    }
    if (this.#isAwaited()) this.#confirm();
    else if (this.#unconfirmed.length) this.#confirmSoon();
  }

  /** Whether the page waits for a send to be confirmed. */
  #isAwaited() {
    return this.#flushes.length > 0 || this.#unconfirmed.some((one) => one.promised);
  }

  #confirmSoon() {
    clearTimeout(this.#timers.confirm);
    this.#timers.confirm = setTimeout(() => this.#confirm(), CONFIRM_AFTER_MS);
  }

  /** Ask for anything: its answer is the proof for all that was written before, and a sign of life. */
  async #confirm() {
    if (this.#state !== "open" || this.#confirming) return;
    clearTimeout(this.#timers.confirm);
    this.#confirming = true;
    const socket = this.#socket;
    const last = this.#unconfirmed.at(-1)?.sequence ?? 0;
    try {
      await this.#barrier();
    } catch (error) {
      if (socket !== this.#socket) return;
      if (error.code === "TIMEOUT") {
        this.#drop("TIMEOUT", "the gateway does not answer");
        return;
      }
    }
    if (socket !== this.#socket) return;
    this.#confirming = false;
    const done = this.#unconfirmed.findIndex((one) => one.sequence > last);
    for (const one of this.#unconfirmed.splice(0, done < 0 ? this.#unconfirmed.length : done)) {
      this.#unconfirmedBytes -= one.text.length;
      one.promised?.resolve();
    }
    this.#confirmed();
    if (this.#unconfirmed.length) this.#isAwaited() ? this.#confirm() : this.#confirmSoon();
  }

  #confirmed() {
    const oldest = (this.#unconfirmed[0] ?? this.#outgoing.find((one) => one.sequence))?.sequence ?? Infinity;
    const ready = this.#flushes.filter((one) => one.last < oldest);
    if (!ready.length) return;
    this.#flushes = this.#flushes.filter((one) => one.last >= oldest);
    const refusals = this.#refusals.splice(0);
    const [error] = refusals;
    if (error) Object.assign(error, { refusals, refusalCount: this.#refusalCount });
    this.#refusalCount = 0;
    for (const flush of ready) error ? flush.reject(error) : flush.resolve();
  }

  // -- requests

  /**
   * One request of the protocol, `{ kv_op: { ... } }`; the id is filled in. Resolves with the DownstreamMessage that
   * answers it, and rejects with an AetherError when it says that it failed.
   */
  request(message, { timeoutMs = this.#options.requestTimeoutMs } = {}) {
    if (this.#state === "closed") return Promise.reject(this.#lastError ?? closedError());
    let request;
    try {
      request = this.#makeRequest(message, timeoutMs);
    } catch (error) {
      return Promise.reject(error);
    }
    this.#outgoing.push(request);
    this.#write();
    return request.promise;
  }

  /** One message of the protocol that has no answer, such as `{ tunnel_close: { ... } }`. Lost if the client is not open. */
  post(message) {
    this.#mustLive();
    if (this.#state !== "open") throw new AetherError("DISCONNECTED", "the client is not open", { retryable: true });
    const name = fieldOf(message);
    this.#transmit(fitting(JSON.stringify(message)));
    if (name === "send") this.#sends += 1;
  }

  /** Whether a participant is connected, and when it was last (null: never seen). Others than oneself need a permission. */
  async status(principalType, principalId) {
    const asked = { principal: { principal_type: principalType, principal_id: principalId } };
    const answer = (await this.request({ connection_status_request: asked })).connection_status_response;
    const seen = Number(answer.last_seen_at ?? 0);
    return { connected: answer.connected ?? false, lastSeen: seen ? new Date(seen * 1000) : null };
  }

  /** Enter another workspace, or none (""). Resolves when it is done; what is sent meanwhile is sent in the new one. */
  async switchWorkspace(workspace) {
    const wanted = textOf("workspace", workspace);
    const done = this.#switching.then(async () => {
      this.#mustLive();
      this.#held = true;
      try {
        for (;;) {
          await this.whenOpen();
          try {
            await this.#barrier(); // so that what is refused from here on is the switch
            await this.#enter(wanted);
            break;
          } catch (error) {
            if (error.code !== "DISCONNECTED") throw error;
          }
        }
        this.#workspace = wanted;
      } finally {
        this.#held = false;
        this.#write();
      }
    });
    this.#switching = done.catch(() => {});
    return done;
  }

  async #enter(workspace) {
    this.#entering = [];
    try {
      this.#transmit({ switch_workspace: { new_workspace_id: workspace } });
      await this.#barrier();
      const [error] = this.#entering;
      if (error) throw error;
    } finally {
      this.#entering = null;
    }
  }

  /** A request that passes those that wait. Its refusal is an answer, too: what stands in front of it is done. */
  #barrier() {
    const principal = { principal_type: "user", principal_id: this.identity };
    const request = this.#makeRequest({ connection_status_request: { principal } }, this.#options.silenceMs);
    this.#transmit(request.text);
    request.written = true;
    return request.promise.catch((error) => {
      if (!request.refused) throw error;
    });
  }

  #makeRequest(message, timeoutMs) {
    const name = fieldOf(message);
    this.#requestCount += 1;
    const id = `${this.#idPrefix}-${this.#requestCount}`;
    const idName = CLIENT_REQUEST_ID.has(name) ? "client_request_id" : "request_id";
    const text = fitting(JSON.stringify({ [name]: { ...message[name], [idName]: id } }));
    const request = { ...deferred(), id, text, send: name === "send", written: false, settled: false, timer: 0 };
    const late = new AetherError("TIMEOUT", `${name}: no answer within ${timeoutMs} ms`, { retryable: true, requestId: id });
    request.timer = setTimeout(() => this.#settle(request, late), timeoutMs);
    this.#requests.set(id, request);
    return request;
  }

  #settle(request, error, answer) {
    clearTimeout(request.timer);
    request.settled = true;
    this.#requests.delete(request.id);
    if (!request.written) this.#outgoing = this.#outgoing.filter((one) => one !== request);
    if (error) request.reject(error);
    else request.resolve(answer);
  }
}

function succeeded(name, value) {
  if (name === "connection_status_response" || name === "resolve_authority_response") return value.ok === true;
  // Answers that have no such flag are whatever was asked for. JSON leaves out what is false.
  if (/^(proxy_http|tunnel)/.test(name)) return true;
  return value.success === true;
}

/** The text of a message, which the gateway would end the connection for if it were longer. */
function fitting(text) {
  const size = text.length * 3 > MAX_MESSAGE_BYTES ? utf8.encode(text).length : text.length;
  if (size <= MAX_MESSAGE_BYTES) return text;
  throw new AetherError("PAYLOAD_TOO_LARGE", `the message has ${size} bytes as JSON; ${MAX_MESSAGE_BYTES} are allowed`);
}

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {}); // a caller that waits is told; none has to wait
  return made;
}

function closedError() {
  return new AetherError("CLOSED", "the client is closed");
}

// -- operations -------------------------------------------------------------------------------------------------------

/** client.kv: the key-value store. By default the gateway serves it to other principals than users. */
class KeyValues {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #do(op, key, { scope = "WORKSPACE", userId, workspace, ttlSeconds, limit, ...rest } = {}, more = {}) {
    const wire = { op, scope, key, ...more };
    if (userId) wire.user_id = userId;
    if (workspace) wire.workspace = workspace;
    if (ttlSeconds) wire.ttl = String(whole("ttlSeconds", ttlSeconds));
    if (limit) wire.limit = whole("limit", limit);
    if (rest.cursor) wire.cursor = rest.cursor;
    return (await this.#client.request({ kv_op: wire }, rest)).kv;
  }

  /** The value; empty when there is none: the protocol does not tell these apart. */
  async get(key, options) {
    return fromBase64((await this.#do("GET", key, options)).value);
  }

  async put(key, value, options) {
    await this.#do("PUT", key, options, { value: toBase64(bytesOf(value)) });
  }

  async delete(key, options) {
    await this.#do("DELETE", key, options);
  }

  /** One page of the keys that begin with `prefix`: { entries: Map, cursor }; `cursor` is "" on the last one. */
  async list(prefix = "", options) {
    const page = await this.#do("LIST", prefix, options);
    const values = page.kv_map ?? {};
    const entries = new Map((page.keys ?? []).map((key) => [key, fromBase64(values[key])]));
    return { entries, cursor: page.has_more ? page.next_cursor : "" };
  }

  /** By one; the value afterwards, as a BigInt. */
  async increment(key, options) {
    return BigInt((await this.#do("INCREMENT", key, options)).counter_value ?? 0);
  }

  async decrement(key, options) {
    return BigInt((await this.#do("DECREMENT", key, options)).counter_value ?? 0);
  }

  /** Whether it was written: only if the key was absent. */
  async putIfAbsent(key, value, options) {
    return (await this.#do("SET_NX", key, options, { value: toBase64(bytesOf(value)) })).applied ?? false;
  }

  /** Whether it was written: only if the value was `expected`. */
  async compareAndSet(key, expected, value, options) {
    const values = { expected_value: toBase64(bytesOf(expected)), value: toBase64(bytesOf(value)) };
    return (await this.#do("COMPARE_AND_SET", key, options, values)).applied ?? false;
  }

  async compareAndDelete(key, expected, options) {
    const values = { expected_value: toBase64(bytesOf(expected)) };
    return (await this.#do("COMPARE_AND_DELETE", key, options, values)).applied ?? false;
  }
}

/** client.checkpoints: what this window keeps on the gateway. No other participant can see it, nor the user's other windows. */
class Checkpoints {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #do(wire, options) {
    return (await this.#client.request({ checkpoint_op: wire }, options)).checkpoint;
  }

  async save(key, data, { ttlSeconds = 0, ...options } = {}) {
    const ttl = String(whole("ttlSeconds", ttlSeconds));
    await this.#do({ op: "SAVE", key, data: toBase64(bytesOf(data)), ttl }, options);
  }

  /** The bytes, or null when nothing was saved. */
  async load(key, options) {
    const found = await this.#do({ op: "LOAD", key }, options);
    return Number(found.saved_at ?? 0) ? fromBase64(found.data) : null;
  }

  async delete(key, options) {
    await this.#do({ op: "DELETE", key }, options);
  }

  async list(options) {
    return (await this.#do({ op: "LIST" }, options)).keys ?? [];
  }
}

/** client.sessions: who is connected. */
class Sessions {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #do(wire, options) {
    return (await this.#client.request({ session_op: wire }, options)).session_response;
  }

  /** A page of connections. Every participant may list those of the own workspace; for more the gateway asks for a permission. */
  async list({ type = "", workspace = this.#client.workspace, limit = 0, offset = 0, ...options } = {}) {
    const filter = { workspace, limit: whole("limit", limit), offset: whole("offset", offset) };
    if (type) filter.type = `PRINCIPAL_${oneOf(PRINCIPAL_TYPES, "type", type).toUpperCase()}`;
    return ((await this.#do({ op: "LIST", filter }, options)).connections ?? []).map(connectionOf);
  }

  async get(sessionId, options) {
    return connectionOf((await this.#do({ op: "GET", session_id: sessionId }, options)).connection);
  }

  async disconnect(sessionId, reason = "", options) {
    await this.#do({ op: "DISCONNECT", session_id: sessionId, reason }, options);
  }
}

function connectionOf(wire) {
  return {
    sessionId: wire.session_id ?? "",
    type: (wire.type ?? "").replace("PRINCIPAL_", "").toLowerCase(),
    identity: wire.identity ?? "",
    workspace: wire.workspace ?? "",
    implementation: wire.implementation ?? "",
    specifier: wire.specifier ?? "",
    connectedAt: new Date(Number(wire.connected_at ?? 0) * 1000),
    duration: wire.duration ?? "",
    remoteAddress: wire.remote_addr ?? "",
    lastActivity: new Date(Number(wire.last_activity ?? 0) * 1000),
  };
}

/** client.authorityRequests: participants ask to act for a user, and the user approves all of it or less, or denies it. */
class AuthorityRequests {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #do(wire, options) {
    return (await this.#client.request({ authority_request_op: wire }, options)).authority_request_response;
  }

  /** A page of the requests that this user may decide, the latest first: { requests, total }. */
  async list({ status = "PENDING", workspace = "", capabilities = [], limit = 0, offset = 0, ...options } = {}) {
    const filter = {
      status: `AUTHORITY_REQUEST_STATUS_${oneOf(REQUEST_STATUSES, "status", status)}`,
      workspace: textOf("workspace", workspace),
      limit: whole("limit", limit),
      offset: whole("offset", offset),
      matching_capabilities: textsOf("capabilities", capabilities),
    };
    const found = await this.#do({ op: "LIST_PENDING", list_filter: filter }, options);
    return { requests: (found.requests ?? []).map(authorityRequestOf), total: found.total_count ?? 0 };
  }

  async get(requestId, options) {
    const wire = { op: "GET", request_id: textOf("requestId", requestId) };
    return authorityRequestOf((await this.#do(wire, options)).request);
  }

  /**
   * Approve a request. What `narrowed` leaves out stays as it was asked for; the gateway never grants more than that. An
   * empty list is a TypeError, since the protocol takes it for "as asked": who wants to give nothing denies.
   */
  async approve(requestId, narrowed = {}, options) {
    const { workspaceScope, resourceScope, operationScope, accessLevel, durationSeconds, reason } = narrowed;
    const resolve = { decision: "APPROVE", reason: textOf("reason", reason ?? "") };
    if (workspaceScope) resolve.granted_workspace_scope = someOf("workspaceScope", workspaceScope);
    if (operationScope) resolve.granted_operation_scope = someOf("operationScope", operationScope);
    if (resourceScope) {
      if (!resourceScope.length) someOf("resourceScope", resourceScope);
      resolve.granted_resource_scope = resourceScope.map(({ resourceType, patterns = [] }) => ({
        resource_type: textOf("resourceType", resourceType), patterns: textsOf("patterns", patterns),
      }));
    }
    if (accessLevel !== undefined) {
      resolve.granted_access_level = `ACCESS_LEVEL_${oneOf(ACCESS_LEVELS, "accessLevel", accessLevel)}`;
    }
    if (durationSeconds !== undefined) {
      if (!durationSeconds) throw new TypeError("durationSeconds is at least 1");
      resolve.granted_duration_seconds = String(whole("durationSeconds", durationSeconds));
    }
    if (narrowed.remainingHops) {
      resolve.may_delegate = true;
      resolve.remaining_hops = whole("remainingHops", narrowed.remainingHops);
    }
    return this.#resolve(requestId, resolve, options);
  }

  async deny(requestId, reason = "", options) {
    return this.#resolve(requestId, { decision: "DENY", reason: textOf("reason", reason) }, options);
  }

  async #resolve(requestId, resolve, options) {
    const wire = { op: "RESOLVE", request_id: textOf("requestId", requestId), resolve };
    return authorityRequestOf((await this.#do(wire, options)).request);
  }
}

function textsOf(name, list) {
  if (!Array.isArray(list)) throw new TypeError(`${name} is a list of strings`);
  return list.map((text) => textOf(name, text));
}

function someOf(name, list) {
  const texts = textsOf(name, list);
  if (!texts.length) throw new TypeError(`${name} has nothing in it: deny the request instead`);
  return texts;
}

function principalOf(wire) {
  return wire ? { type: wire.principal_type ?? "", id: wire.principal_id ?? "" } : null;
}

function momentOf(seconds) {
  return Number(seconds ?? 0) ? new Date(Number(seconds) * 1000) : null;
}

function resourcesOf(list) {
  return (list ?? []).map((one) => ({ resourceType: one.resource_type ?? "", patterns: one.patterns ?? [] }));
}

function authorityRequestOf(wire = {}) {
  const route = wire.routing_target ?? {};
  return {
    requestId: wire.request_id ?? "",
    status: (wire.status ?? "").replace("AUTHORITY_REQUEST_STATUS_", ""),
    requestingActor: principalOf(wire.requesting_actor),
    targetSubject: principalOf(wire.target_subject),
    workspaceScope: wire.desired_workspace_scope ?? [],
    resourceScope: resourcesOf(wire.desired_resource_scope),
    operationScope: wire.desired_operation_scope ?? [],
    accessLevel: (wire.requested_access_level ?? "").replace("ACCESS_LEVEL_", ""),
    durationSeconds: Number(wire.requested_duration_seconds ?? 0),
    audienceType: wire.audience_type ?? "",
    audienceId: wire.audience_id ?? "",
    route: { principal: principalOf(route.principal), capability: route.capability ?? "" },
    reason: wire.reason ?? "",
    taskId: wire.task_id ?? "",
    metadata: wire.metadata ?? {},
    createdAt: momentOf(wire.created_at),
    expiresAt: momentOf(wire.expires_at),
    resolvedAt: momentOf(wire.resolved_at),
    grantId: wire.granted_grant_id ?? "",
    resolvedBy: principalOf(wire.resolved_by),
    resolutionReason: wire.resolution_reason ?? "",
  };
}

function requestEventOf(wire) {
  return {
    type: (wire.event_type ?? "").replace("AUTHORITY_REQUEST_EVENT_", ""),
    request: authorityRequestOf(wire.request),
    emittedAt: momentOf(wire.emitted_at),
  };
}

/** client.grants: who may act for this user, and until when. */
class Grants {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #do(wire, options) {
    return (await this.#client.request({ authority_grant_op: wire }, options)).authority_grant;
  }

  async get(grantId, options) {
    return grantOf((await this.#do({ op: "GET", grant_id: textOf("grantId", grantId) }, options)).grant);
  }

  /** A page of the grants with which others act for this user: { grants, total }. */
  async listOnMe({ includeRevoked = false, limit = 0, offset = 0, ...options } = {}) {
    const wanted = { include_revoked: includeRevoked, limit: whole("limit", limit), offset: whole("offset", offset) };
    const found = await this.#do({ op: "LIST_GRANTS_ON_ME", list_request: wanted }, options);
    return { grants: (found.grants ?? []).map(grantOf), total: found.total ?? 0 };
  }

  /** End a grant, and all that were derived from it. It is in force on every node when the answer comes. */
  async revoke(grantId, options) {
    await this.#do({ op: "REVOKE", grant_id: textOf("grantId", grantId) }, options);
  }
}

function grantOf(wire = {}) {
  return {
    grantId: wire.grant_id ?? "",
    subject: principalOf(wire.subject),
    delegate: principalOf(wire.delegate),
    issuedBy: principalOf(wire.issued_by),
    accessLevel: wire.access_level_name ?? "",
    workspaceScope: wire.workspace_scope ?? [],
    resourceScope: resourcesOf(wire.resource_scope),
    operationScope: wire.operation_scope ?? [],
    remainingHops: wire.remaining_hops ?? 0,
    createdAt: momentOf(wire.created_at),
    expiresAt: momentOf(wire.expires_at),
    revoked: wire.revoked ?? false,
  };
}

/** client.tasks: work that the gateway keeps until it has ended, and the answers of people that it waits for. */
class Tasks {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #query(wire, options) {
    return (await this.#client.request({ task_query: wire }, options)).task_query;
  }

  async #do(op, taskId, reason, options) {
    const wire = { op, task_id: textOf("taskId", taskId), reason: textOf("reason", reason) };
    return taskOf((await this.#client.request({ task_op: wire }, options)).task_op.task);
  }

  async get(taskId, options) {
    return taskOf((await this.#query({ op: "GET", task_id: textOf("taskId", taskId) }, options)).task);
  }

  /** A page of tasks, the latest change first: { tasks, pageToken }; `pageToken` is "" on the last one. */
  async list({ statuses = [], type = "", workspace = this.#client.workspace, parentTaskId = "", limit = 0, pageToken = "", ...options } = {}) {
    const filter = {
      statuses: statuses.map((one) => `TASK_STATUS_${oneOf(TASK_STATUSES, "status", one)}`),
      task_type: textOf("type", type),
      workspace: textOf("workspace", workspace),
      parent_task_id: textOf("parentTaskId", parentTaskId),
      limit: whole("limit", limit),
      page_token: textOf("pageToken", pageToken),
    };
    const page = await this.#query({ op: "LIST", filter }, options);
    return { tasks: (page.tasks ?? []).map(taskOf), pageToken: page.next_page_token ?? "" };
  }

  /** Have work done by any worker of `pool`, or by the participant `target`; the id of the task. */
  async create(type, payload = "", { pool = "", target = "", workspace = "", metadata = {}, idempotencyKey = "", ...options } = {}) {
    if (!pool === !target) throw new TypeError("a task has a pool or a target");
    const wire = {
      task_type: textOf("type", type),
      payload: toBase64(bytesOf(payload)),
      workspace: textOf("workspace", workspace),
      assignment_mode: pool ? "POOL" : "TARGETED",
      target_implementation: textOf("pool", pool),
      target_agent_id: textOf("target", target),
      metadata: textsByName("metadata", metadata),
      idempotency_key: textOf("idempotencyKey", idempotencyKey),
    };
    return (await this.#client.request({ create_task: wire }, options)).create_task.task_id ?? "";
  }

  async cancel(taskId, reason = "", options) {
    return this.#do("CANCEL", taskId, reason, options);
  }

  /** Try a task again that has failed or was cancelled. */
  async retry(taskId, reason = "", options) {
    return this.#do("RETRY", taskId, reason, options);
  }

  async resume(taskId, reason = "", options) {
    return this.#do("RESUME", taskId, reason, options);
  }

  /**
   * Answer the form of a task that waits: { decision: "approve" or "reject", choice, text }. The answer has the pairs that the
   * wait asks for. Resolves when it is committed; the task goes on a moment later.
   */
  async answer(task, { decision, choice, text } = {}) {
    const answer = { ...task.wait?.pairs, decision: oneOf(DECISIONS, "decision", decision) };
    if (choice !== undefined) answer.choice = textOf("choice", choice);
    if (text !== undefined) answer.text = textOf("text", text);
    await this.sendInput(task.taskId, answer, { workspace: task.workspace });
  }

  /**
   * Send the input that a task waits for: it goes on if `metadata` has all pairs of the wait. Resolves when it is committed.
   * After a cut it is not sent again (DISCONNECTED): look at the task.
   */
  async sendInput(taskId, metadata = {}, { workspace = this.#client.workspace } = {}) {
    const [id, place] = [textOf("taskId", taskId), textOf("workspace", workspace)];
    const payload = { task_id: id, workspace: place, metadata: textsByName("metadata", metadata) };
    // Once: a second one would be kept, and answer the next question of the task.
    await this.#client.sendAndConfirm(`tk::${place}::${id}::input`, payload, { type: "EVENT", once: true });
  }

  /**
   * Follow a task by the event "task_event", with the events since a moment (a Date), or new ones only; the id of the
   * subscription. It ends with the connection: subscribe again when the state is "open".
   */
  async subscribe(taskId, { since = null, recursive = false, ...options } = {}) {
    const wire = { op: "SUBSCRIBE", task_id: textOf("taskId", taskId), recursive: Boolean(recursive) };
    if (since) wire.start_timestamp_unix_ms = String(whole("since", since.getTime()));
    const answer = await this.#client.request({ task_subscription_op: wire }, options);
    return answer.task_subscription_response.subscription_id ?? "";
  }

  async unsubscribe(subscriptionId, options) {
    const wire = { op: "UNSUBSCRIBE", subscription_id: textOf("subscriptionId", subscriptionId) };
    await this.#client.request({ task_subscription_op: wire }, options);
  }
}

function textsByName(name, values) {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [textOf(name, key), textOf(`${name}.${key}`, value)]));
}

function statusOf(wire) {
  return (wire ?? "UNSPECIFIED").replace("TASK_STATUS_", "");
}

/** The form of a wait, which the worker of the task has written; null when there is none, or it is none. */
function formOf(text) {
  let form;
  try {
    form = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof form?.question !== "string") return null;
  const choices = Array.isArray(form.choices) ? form.choices.filter((one) => typeof one === "string") : [];
  const label = typeof form.text === "string" ? form.text : "";
  return { question: form.question, choices, text: Boolean(form.text), textLabel: label };
}

function waitOf(wire) {
  if (!wire) return null;
  const match = wire.input_match ?? {};
  return {
    reason: (wire.reason ?? "UNSPECIFIED").replace("WAIT_REASON_", ""),
    expectedPrincipal: wire.expected_principal ?? "",
    pairs: Object.fromEntries(Object.entries(match).filter(([name]) => !name.startsWith("_")).sort()), // the wire has no order
    form: "_form" in match ? formOf(match._form) : null,
    dependsOn: wire.depends_on ?? [],
    authorityRequestId: wire.authority_request_id ?? "",
    timeoutMs: Number(wire.timeout_ms ?? 0),
    wakeAt: Number(wire.scheduled_wake_unix_ms ?? 0) ? new Date(Number(wire.scheduled_wake_unix_ms)) : null,
  };
}

function taskOf(wire = {}) {
  return {
    taskId: wire.task_id ?? "",
    type: wire.task_type ?? "",
    status: statusOf(wire.status),
    workspace: wire.workspace ?? "",
    target: wire.target_topic ?? "",
    assignedTo: wire.assigned_to ?? "",
    creator: wire.creator_actor_id ?? "",
    createdAt: momentOf(wire.created_at),
    startedAt: momentOf(wire.started_at),
    completedAt: momentOf(wire.completed_at),
    pausedAt: momentOf(wire.paused_at),
    failures: wire.attempt ?? 0,
    maxAttempts: wire.max_attempts ?? 0,
    error: wire.error ?? "",
    metadata: wire.metadata ?? {},
    parentTaskId: wire.parent_task_id ?? "",
    dependsOn: wire.depends_on ?? [],
    wait: waitOf(wire.wait_spec),
  };
}

/** { type: "status" or "progress" or "child" or "authority" or "other", ... } */
function taskEventOf(wire) {
  const { status_changed: status, progress, child_lifecycle: child, authority_request: authority } = wire;
  const about = {
    taskId: wire.task_id ?? "",
    emittedAt: Number(wire.emitted_at_unix_ms ?? 0) ? new Date(Number(wire.emitted_at_unix_ms)) : null,
    workspace: wire.workspace ?? "",
    subscriptionId: wire.subscription_id ?? "",
  };
  if (status) {
    return { ...about, type: "status", from: statusOf(status.from_status), to: statusOf(status.to_status), reason: status.reason ?? "" };
  }
  if (progress) {
    const completion = Number.isFinite(progress.progress ?? 0) ? (progress.progress ?? 0) : -1;
    return { ...about, type: "progress", completion, summary: progress.message ?? "", state: progress.state ?? "" };
  }
  if (child) {
    return {
      ...about, type: "child", child: child.child_task_id ?? "", status: statusOf(child.child_status), lifecycle: child.lifecycle ?? "",
    };
  }
  if (authority) return { ...about, type: "authority", event: requestEventOf(authority.event ?? {}) };
  return { ...about, type: "other" };
}

/** client.agents: the agents that an orchestrator starts when they are needed. A right to administrate agents is asked for. */
class Agents {
  #client;

  constructor(client) {
    this.#client = client;
  }

  async #do(wire, options) {
    return (await this.#client.request({ agent_op: wire }, options)).agent;
  }

  /** A page of what is registered: { agents, total }. */
  async list({ profile = "", limit = 0, offset = 0, ...options } = {}) {
    const filter = { orchestrator_profile: textOf("profile", profile), limit: whole("limit", limit), offset: whole("offset", offset) };
    const found = await this.#do({ op: "LIST", filter }, options);
    return { agents: (found.agents ?? []).map(registrationOf), total: found.total_count ?? 0 };
  }

  async get(implementation, options) {
    return registrationOf((await this.#do({ op: "GET", implementation: textOf("implementation", implementation) }, options)).agent);
  }

  /** The orchestrators that are connected, each with the profiles that it starts. */
  async orchestrators(options) {
    const found = await this.#do({ op: "LIST_ORCHESTRATORS" }, options);
    return (found.orchestrators ?? []).map((one) => ({ id: one.orchestrator_id ?? "", profiles: one.profiles ?? [] }));
  }

  /** Have an agent started without a message for it; the id of the start, which is a task. */
  async launch(implementation, specifier, { workspace = this.#client.workspace, params = {}, ...options } = {}) {
    const wire = {
      specifier: textOf("specifier", specifier),
      workspace: textOf("workspace", workspace),
      param_overrides: textsByName("params", params),
    };
    const answer = await this.#do({ op: "LAUNCH", implementation: textOf("implementation", implementation), launch_params: wire }, options);
    return answer.launch_result?.task_id ?? "";
  }
}

function registrationOf(wire = {}) {
  return {
    implementation: wire.implementation ?? "",
    profile: wire.orchestrator_profile || wire.launch_params?.profile || "",
    description: wire.description ?? "",
    registeredAt: momentOf(wire.registered_at),
  };
}
