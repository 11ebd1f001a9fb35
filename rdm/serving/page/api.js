// The server's API. Addresses are relative, so that the page works below any path.

export const CLIENT = (() => {
  const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
  try {
    const known = sessionStorage.getItem("rdm-client") || fresh();
    sessionStorage.setItem("rdm-client", known);
    return known;
  } catch {
    return fresh();
  }
})();

/** A problem as RFC 9457 has it: what, where, and how to fix it. */
export class Problem extends Error {
  constructor(body) {
    super(body.detail);
    Object.assign(this, { where: "", fix: "", retryable: false }, body);
    this.code = (body.type || "").split("/").pop();
  }
}

const OFFLINE = { type: "/errors/offline", status: 0, detail: "the server does not answer", fix: "it is asked again by itself; what you typed is kept", retryable: true };

async function call(method, path, body, type = "application/json") {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { "RDM-Client": CLIENT, ...(body === undefined ? {} : { "Content-Type": type }) },
      body: body === undefined ? undefined : type === "application/json" ? JSON.stringify(body) : body,
    });
  } catch {
    throw new Problem(OFFLINE);
  }
  if (response.status === 204) return null;
  const found = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Problem({ detail: `the server answered ${response.status}`, status: response.status, ...found });
  }
  return found;
}

export const api = {
  status: () => call("GET", "v1/status"),
  signIn: (token) => call("POST", "v1/session", { token }),
  databases: () => call("GET", "v1/databases").then((found) => found.data),
  models: () => call("GET", "v1/models").then((found) => found.data),
  neighbors: (body) => call("POST", "v1/neighbors", body),
  submit: (body) => call("POST", "v1/jobs", body),
  job: (id) => call("GET", `v1/jobs/${id}`),
  cancel: (id) => call("DELETE", `v1/jobs/${id}`),
  credits: (image) => call("GET", image.credits),
  authors: (name) => call("GET", `v1/databases/${name}/authors`),
  patches: (name, cursor, limit) => call("GET", `v1/databases/${name}/patches?cursor=${cursor}&limit=${limit}`),
  patch: (name, id) => call("GET", `v1/databases/${name}/patches/${id}`),
  history: (cursor) => call("GET", `v1/history?limit=40${cursor ? `&cursor=${cursor}` : ""}`),
  forget: (id) => call("DELETE", `v1/history/${id}`),
  upload: (file) => call("POST", "v1/uploads", file, file.type || "application/octet-stream"),
};

export const patchImage = (database, id, size) => `v1/databases/${database}/patches/${id}/image?size=${size}`;

const NAMES = ["session.snapshot", "job.queued", "job.neighbors", "job.started", "image.preview", "image.done",
  "job.done", "job.failed", "job.cancelled", "database.changed", "server.draining"];

/** Follow this session's events: `on(name, data)` gets each, `onState(isConnected)` the connection's.
 * `ready` resolves once nothing that happens from now on is missed. */
export function follow(on, onState) {
  let source, timer, isReady;
  const ready = new Promise((resolve) => { isReady = resolve; });
  const open = () => {
    source = new EventSource(`v1/events?client=${CLIENT}`);
    source.onopen = () => onState(true);
    source.onerror = () => {
      onState(false);
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, 2000);
    };
    for (const name of NAMES) source.addEventListener(name, (event) => { on(name, JSON.parse(event.data)); isReady(); });
  };
  open();
  return { ready, close() { clearTimeout(timer); source.close(); } };
}
