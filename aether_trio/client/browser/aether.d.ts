/** Types of aether.js; the manual is docs/browser.md. */

export const VERSION: string;

/** What can be sent: text, bytes, or a value that JSON can hold. */
export type Payload = string | Uint8Array | ArrayBuffer | ArrayBufferView | object | number | boolean | null;

export type MessageType =
  | "MESSAGE_TYPE_UNSPECIFIED"
  | "CHAT"
  | "CONTROL"
  | "TOOL_CALL"
  | "EVENT"
  | "METRIC"
  | "OPAQUE";

export type State = "new" | "connecting" | "open" | "reconnecting" | "closed";

/** Names of gRPC statuses, for a connection that was refused or has ended. */
export type StatusName =
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

/** Codes of the client's own. */
export type LocalCode =
  | "TIMEOUT"
  | "DISCONNECTED"
  | "CLOSED"
  | "BUFFER_FULL"
  | "PAYLOAD_TOO_LARGE"
  | "PROTOCOL"
  | "REQUEST_FAILED";

export class AetherError extends Error {
  constructor(code: string, message: string, details?: Partial<AetherErrorDetails>);
  readonly name: "AetherError";
  /** The protocol's code (ERR_...), or one of these. */
  readonly code: StatusName | LocalCode | (string & {});
  /** Whether the same may work later without being changed. */
  readonly retryable: boolean;
  readonly retryAfterMs: number;
  readonly requestId: string;
  /** Of the WebSocket; 0 when it was none. */
  readonly closeCode: number;
  /** From flush(): what was refused since the last one, this error first; at most 100. */
  readonly refusals: AetherError[];
  /** From flush(): how many that were in all. */
  readonly refusalCount: number;
}

export interface AetherErrorDetails {
  retryable: boolean;
  retryAfterMs: number;
  requestId: string;
  closeCode: number;
}

/** What storage must be able to do: sessionStorage, localStorage, or an object of your own. */
export interface SlotStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

/** By kind: { api_key: "aek_..." }. Others are refused by name until the gateway knows them. */
export type Credentials = Record<string, string>;

export interface ConnectOptions {
  userId: string;
  /** To be entered once connected; none by default. */
  workspace?: string;
  /** Default: the gateway that this module came from. http, https, ws and wss will do. */
  url?: string | URL;
  /** Default: the one of before (see `storage`), or a new one. */
  windowId?: string;
  /** A function is asked again for each connection. */
  credentials?: Credentials | (() => Credentials | Promise<Credentials>);
  /** Where the window and its session are kept. Default: sessionStorage. null: nowhere. */
  storage?: SlotStorage | null;
  /** Ends the client when it is aborted. */
  signal?: AbortSignal;
  /** For the first connection to stand; connect() rejects then. Default 15,000. */
  timeoutMs?: number;
  /** For an answer. Default 15,000. */
  requestTimeoutMs?: number;
  /** For one try: handshake, acknowledgement, workspace. Default 10,000. */
  attemptTimeoutMs?: number;
  /** After this silence the gateway is asked for a sign of life; 0 is never. Default 25,000. */
  heartbeatMs?: number;
  /** An unanswered sign of life ends the connection after this. Default 30,000. */
  silenceMs?: number;
  /** Longest wait between two tries. Default 30,000. */
  maxBackoffMs?: number;
  /** Sends that wait or are not confirmed, as text on the wire; beyond it send() throws BUFFER_FULL. Default 4 MiB. */
  maxUnconfirmedBytes?: number;
  /** Messages that the page is not done with; beyond either the gateway keeps the others. Defaults 16 MiB and 10,000. */
  maxBufferedBytes?: number;
  maxBufferedMessages?: number;
}

export interface PrincipalRef {
  principal_type?: string;
  principal_id?: string;
}

export class Message {
  constructor(wire: object, place?: object);
  /** Names the message for good: the same when it comes again, and in all windows that get it from one topic. */
  readonly id: string;
  /** The topic that it was sent to: this window's, or one of several windows. */
  readonly topic: string;
  /** The sender's topic: where an answer goes. */
  readonly source: string;
  readonly payload: Uint8Array;
  readonly type: MessageType;
  readonly workspace: string;
  readonly onBehalfOf: PrincipalRef | null;
  text(): string;
  json<T = any>(): T;
}

export interface Progress {
  source: string;
  taskId: string;
  state: string;
  /** From 0 to 1; -1 when it is not known. */
  completion: number;
  summary: string;
  step: { name: string; detail: string; sequence: number; total: number; type: string };
  timestampMs: number;
  workspace: string;
  requestId: string;
  metadata: Record<string, string>;
  recipient: string;
  kind: string;
}

export interface StateChange {
  state: State;
  previous: State;
  /** Why it is reconnecting, or has ended without a call of close(). */
  error: AetherError | null;
  /** Of tries since it was open. */
  attempt: number;
  retryInMs: number;
}

export interface Signal {
  type: "FORCE_DISCONNECT" | "GRACEFUL_DISCONNECT";
  reason: string;
}

export interface SessionInfo {
  /** A secret: a client that knows it may take the session over. */
  id: string;
  resumed: boolean;
  /** When the first session of this chain of resumes began; Unix milliseconds. */
  since: number;
  reconnections: number;
  serverVersion: string;
}

export interface Connection {
  /** "" in a list that was made without the permission to manage sessions. */
  sessionId: string;
  type: string;
  identity: string;
  workspace: string;
  implementation: string;
  specifier: string;
  connectedAt: Date;
  duration: string;
  remoteAddress: string;
  lastActivity: Date;
}

export interface Statistics {
  sent: number;
  received: number;
  reconnections: number;
  /** Deliveries that came again after a reconnect, and were dropped. */
  duplicates: number;
  unconfirmed: number;
  unconfirmedBytes: number;
  buffered: number;
  bufferedBytes: number;
}

/** The detail of each event, by its type. */
export interface ClientEvents {
  message: Message;
  progress: Progress;
  state: StateChange;
  signal: Signal;
  /** A refusal that belongs to no request (mostly of a send), or the reason of the end. */
  error: AetherError;
  /** A request for authority that concerns this user was made, decided, withdrawn, or has expired. */
  authority_request: AuthorityRequestEvent;
  /** Of a task that client.tasks.subscribe() follows. */
  task_event: TaskEvent;
  /** Every other DownstreamMessage, as it came: assignments, ... */
  downstream: Record<string, any>;
}

export interface SendOptions {
  /** Default OPAQUE. */
  type?: MessageType;
  /** The workspace it is about, when that is not the sender's. */
  appWorkspace?: string;
}

export interface InWorkspace {
  /** Default: the client's. */
  workspace?: string;
}

export interface RequestOptions {
  timeoutMs?: number;
}

export class Client extends EventTarget {
  constructor(options: ConnectOptions);
  readonly state: State;
  readonly url: string;
  readonly userId: string;
  readonly windowId: string;
  /** us::user::window */
  readonly identity: string;
  readonly workspace: string;
  readonly session: SessionInfo | null;
  readonly kv: KeyValues;
  readonly checkpoints: Checkpoints;
  readonly sessions: Sessions;
  readonly authorityRequests: AuthorityRequests;
  readonly grants: Grants;
  readonly tasks: Tasks;
  readonly agents: Agents;

  open(): Promise<this>;
  whenOpen(): Promise<void>;
  reconnectNow(): void;
  close(options?: { forget?: boolean }): void;
  statistics(): Statistics;

  messages(): AsyncGenerator<Message, void, void>;
  addEventListener<K extends keyof ClientEvents>(
    type: K,
    listener: ((event: CustomEvent<ClientEvents[K]>) => void) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof ClientEvents>(
    type: K,
    listener: ((event: CustomEvent<ClientEvents[K]>) => void) | null,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;

  send(topic: string, payload: Payload, options?: SendOptions): void;
  /** `once`: not sent again after a cut; rejects with DISCONNECTED when it may have arrived. */
  sendAndConfirm(topic: string, payload: Payload, options?: SendOptions & { once?: boolean }): Promise<void>;
  sendToAgent(implementation: string, specifier: string, payload: Payload, options?: SendOptions & InWorkspace): void;
  sendToAgents(payload: Payload, options?: SendOptions & InWorkspace): void;
  sendToUser(userId: string, payload: Payload, options?: SendOptions & InWorkspace): void;
  sendToWindow(userId: string, windowId: string, payload: Payload, options?: SendOptions): void;
  sendToUsers(payload: Payload, options?: SendOptions & InWorkspace): void;
  sendToService(implementation: string, specifier: string | null, payload: Payload, options?: SendOptions): void;
  flush(options?: RequestOptions): Promise<void>;

  switchWorkspace(workspace: string): Promise<void>;
  request(message: Record<string, object>, options?: RequestOptions): Promise<Record<string, any>>;
  post(message: Record<string, object>): void;
  status(principalType: string, principalId: string): Promise<{ connected: boolean; lastSeen: Date | null }>;
}

export type KvScope =
  | "GLOBAL"
  | "WORKSPACE"
  | "USER"
  | "USER_WORKSPACE"
  | "GLOBAL_EXCLUSIVE"
  | "WORKSPACE_EXCLUSIVE"
  | "USER_SHARED"
  | "USER_WORKSPACE_SHARED";

export interface KvOptions extends RequestOptions {
  /** Default WORKSPACE. */
  scope?: KvScope;
  userId?: string;
  workspace?: string;
}

export interface KvWriteOptions extends KvOptions {
  /** 0 or nothing: for good. */
  ttlSeconds?: number;
}

export interface KeyValues {
  get(key: string, options?: KvOptions): Promise<Uint8Array>;
  put(key: string, value: Payload, options?: KvWriteOptions): Promise<void>;
  delete(key: string, options?: KvOptions): Promise<void>;
  list(
    prefix?: string,
    options?: KvOptions & { limit?: number; cursor?: string },
  ): Promise<{ entries: Map<string, Uint8Array>; cursor: string }>;
  increment(key: string, options?: KvWriteOptions): Promise<bigint>;
  decrement(key: string, options?: KvWriteOptions): Promise<bigint>;
  putIfAbsent(key: string, value: Payload, options?: KvWriteOptions): Promise<boolean>;
  compareAndSet(key: string, expected: Payload, value: Payload, options?: KvWriteOptions): Promise<boolean>;
  compareAndDelete(key: string, expected: Payload, options?: KvOptions): Promise<boolean>;
}

export interface Checkpoints {
  save(key: string, data: Payload, options?: RequestOptions & { ttlSeconds?: number }): Promise<void>;
  load(key: string, options?: RequestOptions): Promise<Uint8Array | null>;
  delete(key: string, options?: RequestOptions): Promise<void>;
  list(options?: RequestOptions): Promise<string[]>;
}

export interface Sessions {
  list(
    options?: RequestOptions & InWorkspace & { type?: string; limit?: number; offset?: number },
  ): Promise<Connection[]>;
  get(sessionId: string, options?: RequestOptions): Promise<Connection>;
  disconnect(sessionId: string, reason?: string, options?: RequestOptions): Promise<void>;
}

export interface Principal {
  type: string;
  /** Of a user the name, of all others the identity. */
  id: string;
}

export type AccessLevel = "READ" | "READWRITE" | "MANAGE" | "ADMIN" | "SUPERADMIN";

export interface ResourceScope {
  resourceType: string;
  /** None: all of this type. */
  patterns: string[];
}

export type AuthorityRequestStatus = "PENDING" | "APPROVED" | "DENIED" | "EXPIRED" | "CANCELLED";

/** In lists of what is asked for, none means any. */
export interface AuthorityRequest {
  requestId: string;
  status: AuthorityRequestStatus;
  requestingActor: Principal | null;
  /** null: it is for the authority of its approver. */
  targetSubject: Principal | null;
  workspaceScope: string[];
  resourceScope: ResourceScope[];
  operationScope: string[];
  accessLevel: AccessLevel;
  durationSeconds: number;
  audienceType: string;
  audienceId: string;
  route: { principal: Principal | null; capability: string };
  /** Words of who asks, as `metadata`: show them as text, and say whose they are. */
  reason: string;
  taskId: string;
  metadata: Record<string, string>;
  createdAt: Date | null;
  expiresAt: Date | null;
  resolvedAt: Date | null;
  /** The grant that an approval has made. */
  grantId: string;
  resolvedBy: Principal | null;
  resolutionReason: string;
}

export interface AuthorityRequestEvent {
  type: "CREATED" | "APPROVED" | "DENIED" | "EXPIRED" | "CANCELLED";
  request: AuthorityRequest;
  emittedAt: Date | null;
}

/** What is left out stays as it was asked for. */
export interface Narrowed {
  workspaceScope?: string[];
  resourceScope?: { resourceType: string; patterns?: string[] }[];
  operationScope?: string[];
  accessLevel?: AccessLevel;
  durationSeconds?: number;
  /** How often the grant may be passed on; 0 by default. */
  remainingHops?: number;
  reason?: string;
}

export interface AuthorityRequests {
  list(
    options?: RequestOptions & {
      status?: AuthorityRequestStatus;
      workspace?: string;
      /** Also those that are routed to these. */
      capabilities?: string[];
      limit?: number;
      offset?: number;
    },
  ): Promise<{ requests: AuthorityRequest[]; total: number }>;
  get(requestId: string, options?: RequestOptions): Promise<AuthorityRequest>;
  approve(requestId: string, narrowed?: Narrowed, options?: RequestOptions): Promise<AuthorityRequest>;
  deny(requestId: string, reason?: string, options?: RequestOptions): Promise<AuthorityRequest>;
}

export interface Grant {
  grantId: string;
  subject: Principal | null;
  delegate: Principal | null;
  issuedBy: Principal | null;
  accessLevel: AccessLevel;
  workspaceScope: string[];
  resourceScope: ResourceScope[];
  operationScope: string[];
  remainingHops: number;
  createdAt: Date | null;
  expiresAt: Date | null;
  revoked: boolean;
}

export interface Grants {
  get(grantId: string, options?: RequestOptions): Promise<Grant>;
  listOnMe(
    options?: RequestOptions & { includeRevoked?: boolean; limit?: number; offset?: number },
  ): Promise<{ grants: Grant[]; total: number }>;
  revoke(grantId: string, options?: RequestOptions): Promise<void>;
}

export type TaskStatus =
  | "UNSPECIFIED"
  | "QUEUED"
  | "RUNNING"
  | "COMPLETED"
  | "FAILED"
  | "CANCELLED"
  | "WAITING_INPUT"
  | "WAITING_AUTHORITY"
  | "WAITING_DEPENDENCY"
  | "HIBERNATED"
  | "REJECTED";

/** The words of the task's worker: show them as text, and say whose they are. */
export interface TaskForm {
  question: string;
  choices: string[];
  /** Whether a text is asked for, and the label of its field ("" for none). */
  text: boolean;
  textLabel: string;
}

export interface TaskWait {
  reason: string;
  /** Who alone may answer; "" for each participant of the workspace. */
  expectedPrincipal: string;
  /** What an input must have to end the wait. */
  pairs: Record<string, string>;
  form: TaskForm | null;
  dependsOn: string[];
  authorityRequestId: string;
  /** 0: for ever. */
  timeoutMs: number;
  wakeAt: Date | null;
}

export interface Task {
  taskId: string;
  type: string;
  status: TaskStatus;
  workspace: string;
  target: string;
  /** Its worker. */
  assignedTo: string;
  creator: string;
  createdAt: Date | null;
  startedAt: Date | null;
  completedAt: Date | null;
  pausedAt: Date | null;
  /** How often it has failed so far. */
  failures: number;
  maxAttempts: number;
  error: string;
  metadata: Record<string, string>;
  parentTaskId: string;
  dependsOn: string[];
  wait: TaskWait | null;
}

export interface TaskEvent {
  type: "status" | "progress" | "child" | "authority" | "other";
  taskId: string;
  emittedAt: Date | null;
  workspace: string;
  subscriptionId: string;
  /** "status": from one to another, with a reason. */
  from?: TaskStatus;
  to?: TaskStatus;
  reason?: string;
  /** "progress": from 0 to 1, or -1 when it is not known. */
  completion?: number;
  summary?: string;
  state?: string;
  /** "child": a task below it. */
  child?: string;
  status?: TaskStatus;
  lifecycle?: string;
  /** "authority": a request about it. */
  event?: AuthorityRequestEvent;
}

export interface Tasks {
  get(taskId: string, options?: RequestOptions): Promise<Task>;
  list(
    options?: RequestOptions &
      InWorkspace & { statuses?: TaskStatus[]; type?: string; parentTaskId?: string; limit?: number; pageToken?: string },
  ): Promise<{ tasks: Task[]; pageToken: string }>;
  create(
    type: string,
    payload?: Payload,
    options?: RequestOptions &
      InWorkspace & { pool?: string; target?: string; metadata?: Record<string, string>; idempotencyKey?: string },
  ): Promise<string>;
  cancel(taskId: string, reason?: string, options?: RequestOptions): Promise<Task>;
  retry(taskId: string, reason?: string, options?: RequestOptions): Promise<Task>;
  resume(taskId: string, reason?: string, options?: RequestOptions): Promise<Task>;
  answer(
    task: Pick<Task, "taskId" | "workspace" | "wait">,
    answer: { decision: "approve" | "reject"; choice?: string; text?: string },
  ): Promise<void>;
  sendInput(taskId: string, metadata?: Record<string, string>, options?: InWorkspace): Promise<void>;
  subscribe(taskId: string, options?: RequestOptions & { since?: Date | null; recursive?: boolean }): Promise<string>;
  unsubscribe(subscriptionId: string, options?: RequestOptions): Promise<void>;
}

export interface RegisteredAgent {
  implementation: string;
  /** Which orchestrators start it. */
  profile: string;
  description: string;
  registeredAt: Date | null;
}

export interface Agents {
  list(
    options?: RequestOptions & { profile?: string; limit?: number; offset?: number },
  ): Promise<{ agents: RegisteredAgent[]; total: number }>;
  get(implementation: string, options?: RequestOptions): Promise<RegisteredAgent>;
  orchestrators(options?: RequestOptions): Promise<{ id: string; profiles: string[] }[]>;
  launch(
    implementation: string,
    specifier: string,
    options?: RequestOptions & InWorkspace & { params?: Record<string, string> },
  ): Promise<string>;
}

/** Connect; resolves with a client that is open. Rejects with an AetherError. */
export function connect(options: ConnectOptions): Promise<Client>;

/** The addresses of the protocol. */
export const topics: {
  agent(workspace: string, implementation: string, specifier: string): string;
  agents(workspace: string): string;
  service(implementation: string, specifier?: string | null): string;
  user(userId: string): string;
  userIn(userId: string, workspace: string): string;
  users(workspace: string): string;
  window(userId: string, windowId: string): string;
};
