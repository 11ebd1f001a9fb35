// The page's one state, and everything that changes it. Views read `story.state` and call methods.
import { api, CLIENT, follow, patchImage, Problem } from "./api.js";
import { decodeLink, encodeLink } from "./link.js";
import { nameOf } from "./words.js";

const DRAFT_STEPS = 8;
const TYPING_MS = 250;
const REFINE_MS = 700;
const ANNOUNCE_MS = 5000;
const IDLE_MS = 30000;

const fresh = () => ({ phase: "idle", neighbors: [], images: [], note: "", version: null, ms: null, job: null, problem: null, isDraft: false, position: 0, secondsLeft: 0, seconds: 0 });

export const defaults = { k: 4, steps: 30, guidance: 3, count: 4, seed: 0 };

class Story {
  constructor() {
    this.state = {
      status: "starting", isConnected: true, needsToken: false,
      databases: [], models: [], samples: {},
      text: "", query: null, database: null, isAll: false, excluded: [], weights: {}, isLocked: true,
      settings: { ...defaults },
      columns: {}, before: null, isComparing: false, wipe: 50,
      history: [], historyCursor: null, dialog: null, credits: null, problem: null,
      isPanelOpen: false, keysOn: true, message: "", toast: "",
    };
    this.listeners = new Set();
    this.jobs = new Map(); // job id -> database
    this.timers = {};
    this.generation = 0;
    this.spoken = 0;
  }

  subscribe(listener) { this.listeners.add(listener); return () => this.listeners.delete(listener); }

  set(changes) {
    this.state = { ...this.state, ...changes };
    if (this.isWaiting) return;
    this.isWaiting = true;
    queueMicrotask(() => { this.isWaiting = false; for (const listener of this.listeners) listener(this.state); });
  }

  column(name) { return this.state.columns[name] || fresh(); }
  setColumn(name, changes) { this.set({ columns: { ...this.state.columns, [name]: { ...this.column(name), ...changes } } }); }
  later(name, ms, work) { clearTimeout(this.timers[name]); this.timers[name] = setTimeout(work, ms); }

  /** Say something to screen readers, at most every five seconds; the last word is never lost. */
  announce(message) {
    const wait = this.spoken + ANNOUNCE_MS - Date.now();
    this.later("announce", Math.max(0, wait), () => { this.spoken = Date.now(); this.set({ message }); });
  }

  toast(text) { this.set({ toast: text }); this.later("toast", 2500, () => this.set({ toast: "" })); }

  // Start.

  async start() {
    addEventListener("pagehide", () => this.hangUp());
    addEventListener("hashchange", () => this.restoreLink());
    await this.load();
  }

  async load() {
    try {
      const status = await api.status();
      const [databases, models] = await Promise.all([api.databases(), api.models()]);
      this.set({ status: status.status, databases, models, needsToken: false });
      if (status.status === "starting" || !databases.length) {
        this.later("load", 700, () => this.load());
      }
      if (!databases.length) return;
      if (!this.state.database) {
        const usable = databases.find((one) => !models.length || one.models.length) || databases[0];
        this.set({ database: usable.name });
        await this.restoreLink();
        this.loadHistory();
      }
      for (const one of databases) this.loadSamples(one);
    } catch (problem) {
      if (problem.code === "no_token") this.set({ needsToken: true });
      else { this.set({ isConnected: problem.code !== "offline" }); this.later("load", 2000, () => this.load()); }
    }
  }

  /** Six photographs of a database, evenly spread, to begin with. */
  async loadSamples(database) {
    if (this.state.samples[database.name]) return;
    const found = await Promise.all(Array.from({ length: 6 }, (_, i) =>
      api.patches(database.name, Math.floor(((i + 0.5) * database.patches) / 6), 1).catch(() => ({ patches: [] }))));
    this.set({ samples: { ...this.state.samples, [database.name]: found.flatMap((page) => page.patches) } });
  }

  async loadHistory(more = false) {
    try {
      const page = await api.history(more ? this.state.historyCursor : null);
      this.set({ history: more ? [...this.state.history, ...page.data] : page.data, historyCursor: page.cursor });
    } catch { /* the strip stays as it is */ }
  }

  async signIn(token) {
    await api.signIn(token);
    this.set({ needsToken: false });
    location.reload();
  }

  /** Open the stream of events, where it is not: a browser has six connections for all tabs together,
   * so that it is closed again when nothing was asked for half a minute. */
  async listen() {
    this.stream ??= follow((name, data) => this.on(name, data), (isConnected) => this.set({ isConnected }));
    this.later("hang up", IDLE_MS, () => (this.jobs.size ? this.listen() : this.hangUp()));
    await Promise.race([this.stream.ready, new Promise((resolve) => setTimeout(resolve, 3000))]);
  }

  hangUp() { this.stream?.close(); this.stream = null; }

  // Asking.

  type(text) {
    const query = text.trim() ? { text: text.trim() } : null;
    this.set({ text, query, weights: {}, problem: null });
    if (query) this.later("ask", TYPING_MS, () => this.ask());
    else this.stop();
  }

  /** Take another query than a text: a photograph, an upload, a draw from p_D. */
  askFor(query, chip) {
    this.set({ query: { ...query, chip }, text: query.text || "", excluded: [], weights: {}, problem: null });
    this.ask();
  }

  clearQuery() { this.set({ query: this.state.text.trim() ? { text: this.state.text.trim() } : null }); if (this.state.query) this.ask(); else this.stop(); }

  /** Begin with any photograph of the database. */
  async surprise() {
    const database = this.state.databases.find((one) => one.name === this.state.database);
    if (!database) return;
    try {
      const page = await api.patches(database.name, Math.floor(Math.random() * database.patches), 1);
      if (page.patches.length) this.like(page.patches[0], "a surprise");
    } catch (problem) { this.fail(problem); }
  }

  async upload(file) {
    try {
      const upload = await api.upload(file);
      this.askFor({ image: upload.id }, { label: file.name || "a picture", src: `v1/uploads/${upload.id}.webp?size=64` });
    } catch (problem) { this.fail(problem); }
  }

  like(neighbor, label = neighbor.title || `photograph ${neighbor.image_id}`) {
    this.set({ database: neighbor.database, isAll: false });
    this.askFor({ patch: neighbor.patch_id, home: neighbor.database }, { label, src: patchImage(neighbor.database, neighbor.patch_id, 64) });
  }

  /** Change how much attention a photograph gets, in halves from 0 to 4. */
  weigh(neighbor, by) {
    const key = `${neighbor.database}:${neighbor.patch_id}`;
    const weight = Math.max(0, Math.min(4, (this.state.weights[key] ?? 1) + by));
    this.rememberBefore(`weight ${this.state.weights[key] ?? 1}`, `weight ${weight}`);
    this.set({ weights: { ...this.state.weights, [key]: weight } });
    this.announce(`photograph ${neighbor.image_id}: weight ${weight}`);
    this.later("ask", TYPING_MS, () => { this.keepsBefore = Boolean(this.state.before); this.ask({ compare: true }); });
  }

  exclude(neighbor) {
    this.rememberBefore(`with ${nameOf(neighbor)}`, `without ${nameOf(neighbor)}`);
    this.set({ excluded: [...this.state.excluded, neighbor] });
    this.announce(`removed ${nameOf(neighbor)}; drawing again with the same seeds`);
    this.ask({ compare: true });
  }

  include(neighbor) {
    this.rememberBefore(`without ${nameOf(neighbor)}`, `with ${nameOf(neighbor)}`);
    this.set({ excluded: this.state.excluded.filter((one) => one.image_id !== neighbor.image_id) });
    this.ask({ compare: true });
  }

  swap(name) {
    if (name === this.state.database && !this.state.isAll) return;
    this.rememberBefore(this.state.database, name);
    this.set({ database: name, isAll: false });
    if (this.state.query) this.ask();
  }

  sideBySide() { this.set({ isAll: true, isComparing: false, before: null }); if (this.state.query) this.ask(); }

  setting(name, value) {
    this.set({ settings: { ...this.state.settings, [name]: value } });
    if (this.state.query) this.later("ask", TYPING_MS, () => this.ask());
  }

  newSeed() {
    if (!this.state.query) return;
    this.rememberBefore(`seed ${this.state.settings.seed}`, "new seed");
    this.setting("seed", Math.floor(Math.random() * 1e6));
  }

  lockSeed() { this.set({ isLocked: !this.state.isLocked }); this.toast(this.state.isLocked ? "Seed kept" : "Every Draw takes new noise"); }

  /** Draw the whole picture now. */
  draw() {
    if (!this.state.query) return;
    if (!this.state.isLocked) this.set({ settings: { ...this.state.settings, seed: Math.floor(Math.random() * 1e6) } });
    clearTimeout(this.timers.ask);
    this.ask({ isFinal: true });
  }

  shownNames() {
    const { isAll, databases, database } = this.state;
    return isAll ? databases.filter((one) => one.models.length || !this.state.models.length).map((one) => one.name) : [database];
  }

  seeds() { return Array.from({ length: this.state.settings.count }, (_, i) => this.state.settings.seed + i); }

  asked() {
    const { text, image, patch } = this.state.query;
    return text ? { texts: [text] } : image ? { images: [image] } : { patches: [String(patch)] };
  }

  lookUpBody(name) {
    const { settings, excluded, query } = this.state;
    const removed = excluded.filter((one) => one.database === name).map((one) => one.image_id);
    const asked = this.asked();
    const databases = [{ name }];
    // A photograph of one database, looked up in another: it is named, and has no share itself.
    if (asked.patches && query.home && query.home !== name) { asked.patches = [`${query.home}:${query.patch}`]; databases.push({ name: query.home, weight: 0 }); }
    return { ...asked, retrieval: { databases, exclude: { photographs: removed }, weights: this.weightsOf(name) }, settings: { k: settings.k } };
  }

  /** Weights of the photographs that are looked at now; others say nothing. */
  weightsOf(name) {
    const seen = new Set(this.column(name).neighbors.map((one) => `${name}:${one.patch_id}`));
    const told = Object.entries(this.state.weights).filter(([key, weight]) => seen.has(key) && weight !== 1);
    return Object.fromEntries(told.map(([key, weight]) => [key.split(":").at(-1), weight]));
  }

  body(name, isDraft) {
    const { settings } = this.state;
    const body = this.lookUpBody(name);
    return {
      ...body,
      settings: { ...body.settings, num_steps: isDraft ? Math.min(DRAFT_STEPS, settings.steps) : settings.steps, guidance_scale: settings.guidance },
      seeds: this.seeds(), client_tag: name, supersede: isDraft,
    };
  }

  /** Look up, draw a draft, and the whole picture once nothing changes any more. */
  async ask({ isFinal = false, compare = false } = {}) {
    const { query, database } = this.state;
    if (!query || !database) return;
    const generation = ++this.generation;
    clearTimeout(this.timers.refine);
    this.set({ problem: null, isComparing: compare && Boolean(this.state.before) });
    if (!compare && !this.keepsBefore) this.set({ before: null });
    this.keepsBefore = false;
    this.cancelRunning();
    for (const name of this.shownNames()) this.askOne(name, !isFinal, generation);
    this.saveLink();
  }

  async askOne(name, isDraft, generation) {
    this.setColumn(name, { phase: "looking", problem: null, isDraft });
    try {
      if (!this.state.models.length) {
        const found = await api.neighbors(this.lookUpBody(name));
        if (generation === this.generation) this.setColumn(name, { neighbors: found.neighbors, version: found.databases[0].version, ms: found.milliseconds, phase: "idle", images: [] });
        return;
      }
      await this.listen();
      if (generation !== this.generation) return;
      const job = await api.submit(this.body(name, isDraft));
      if (generation !== this.generation) { api.cancel(job.id).catch(() => {}); return; }
      // Events may have come before the answer.
      this.jobs.set(job.id, { name, generation, isDraft });
      const early = this.early?.get(job.id) || [];
      this.early?.delete(job.id);
      this.setColumn(name, { job: job.id, position: job.position, secondsLeft: job.seconds_left, phase: "queued", isDraft, images: this.placeholders(name) });
      for (const [event, data] of early) this.on(event, data);
    } catch (problem) {
      if (generation === this.generation) this.failColumn(name, problem, isDraft);
    }
  }

  placeholders(name) {
    const old = this.column(name).images;
    return this.seeds().map((seed, index) => ({ index, seed, src: old[index]?.src || null, isOld: true, step: 0, of: 0, picture: null }));
  }

  failColumn(name, problem, isDraft) {
    // The server is starting or busy: a draft is tried again by itself.
    if (problem.retryable && isDraft) this.later("ask", 1500, () => this.ask());
    this.setColumn(name, { phase: "error", problem });
    this.announce(problem.message);
  }

  fail(problem) { this.set({ problem: problem instanceof Problem ? problem : new Problem({ detail: String(problem) }) }); }

  cancelRunning() {
    for (const [id, one] of this.jobs) {
      if (one.generation === this.generation) continue;
      api.cancel(id).catch(() => {});
      this.jobs.delete(id);
    }
  }

  stop() {
    this.generation += 1;
    clearTimeout(this.timers.ask);
    clearTimeout(this.timers.refine);
    for (const id of this.jobs.keys()) api.cancel(id).catch(() => {});
    this.jobs.clear();
    for (const name of Object.keys(this.state.columns)) {
      const column = this.column(name);
      this.setColumn(name, this.state.query ? { phase: "idle", images: column.images.filter((image) => image.src) } : fresh());
    }
  }

  get isBusy() { return this.shownNames().some((name) => ["looking", "queued", "drawing"].includes(this.column(name).phase)); }

  rememberBefore(beforeLabel, afterLabel) {
    const images = this.column(this.state.database).images.filter((image) => image.src);
    if (this.state.isAll || !images.length) return;
    this.keepsBefore = true;
    this.set({ before: { images, beforeLabel, afterLabel }, wipe: 50 });
  }

  compare() {
    if (!this.state.before) return this.toast("Nothing to compare yet: remove a photograph or swap the database");
    this.set({ isComparing: !this.state.isComparing });
  }

  moveWipe(by) { if (this.state.isComparing) this.set({ wipe: Math.max(0, Math.min(100, this.state.wipe + by)) }); }

  // Events.

  on(name, data) {
    if (name === "session.snapshot") return this.reconnect(data);
    if (name === "database.changed") { this.load(); this.checkRemoved(data.name); this.announce(`${data.name} is at version ${data.version}`); return this.toast(`${data.name}: version ${data.version}${data.removed ? `, ${data.removed} removed` : ""}`); }
    if (name === "server.draining") return this.set({ status: "draining" });
    const known = this.jobs.get(data.job);
    if (!known) { this.early = this.early || new Map(); this.early.set(data.job, [...(this.early.get(data.job) || []), [name, data]].slice(-40)); if (this.early.size > 20) this.early.delete(this.early.keys().next().value); return; }
    if (known.generation !== this.generation) return;
    this.onJob(known.name, name, data, known);
  }

  /** Grey the tiles of photographs that a new version has no more. */
  async checkRemoved(name) {
    const gone = await Promise.all(this.column(name).neighbors.map((one) =>
      api.patch(name, one.patch_id).then(() => null, (problem) => (problem.code === "patch_removed" ? one.patch_id : null))));
    const neighbors = this.column(name).neighbors.map((one) => (gone.includes(one.patch_id) ? { ...one, isRemoved: true } : one));
    this.setColumn(name, { neighbors });
  }

  onJob(column, name, data, known) {
    if (name === "job.neighbors") {
      this.setColumn(column, { neighbors: data.neighbors, version: data.databases[0]?.version, ms: data.milliseconds });
      this.announce(`looked up ${data.neighbors.length} photographs in ${Math.round(data.milliseconds)} ms`);
    } else if (name === "job.queued") this.setColumn(column, { position: data.position, secondsLeft: data.seconds_left });
    else if (name === "job.started") this.setColumn(column, { phase: "drawing", position: 0, started: performance.now() });
    else if (name === "image.preview") this.setImage(column, data.index, { src: `data:image/webp;base64,${data.data}`, step: data.step, of: data.of, isOld: false });
    else if (name === "image.done") this.setImage(column, data.index, { src: data.url, picture: data, step: 0, of: 0, isOld: false });
    else if (name === "job.done") this.done(column, data, known);
    else if (name === "job.failed") this.failColumn(column, new Problem(data.problem), known.isDraft);
    else if (name === "job.cancelled") this.setColumn(column, { phase: "idle" });
    if (name.startsWith("job.") && !["job.neighbors", "job.queued", "job.started"].includes(name)) this.jobs.delete(data.job);
  }

  setImage(column, index, changes) {
    const images = this.column(column).images.map((image) => (image.index === index ? { ...image, ...changes } : image));
    this.setColumn(column, { images });
  }

  done(column, data, known) {
    this.setColumn(column, { phase: "idle", seconds: data.timings.drawn });
    if (known.isDraft) {
      if (!this.isBusy) this.later("refine", REFINE_MS, () => this.refine());
      return;
    }
    this.announce(`${data.images} pictures drawn`);
    this.loadHistory();
  }

  /** Draw the drafts again with every step, and the same seeds. */
  refine() {
    const generation = ++this.generation;
    for (const name of this.shownNames()) this.askOne(name, false, generation);
  }

  /** After a lost connection: what became of this session's jobs. */
  async reconnect(snapshot) {
    this.set({ status: snapshot.status });
    if (snapshot.status === "starting") this.load();
    for (const [id, known] of this.jobs) {
      try {
        const job = await api.job(id);
        this.setColumn(known.name, { neighbors: job.neighbors, version: job.databases[0]?.version });
        for (const picture of job.images) this.onJob(known.name, "image.done", picture, known);
        if (["done", "failed", "cancelled"].includes(job.state)) this.onJob(known.name, `job.${job.state}`, { job: id, images: job.images.length, timings: job.timings, problem: job.problem }, known);
      } catch { this.jobs.delete(id); this.setColumn(known.name, { phase: "idle" }); }
    }
  }

  // Links, history, credits.

  linkValue() {
    const { query, database, isAll, settings, excluded } = this.state;
    const { chip, ...asked } = query || {};
    return { q: asked, d: database, a: isAll ? 1 : 0, ...settings, x: excluded.filter((one) => one.database === database).map((one) => one.image_id) };
  }

  async saveLink() {
    const fragment = await encodeLink(this.linkValue());
    this.lastLink = fragment;
    history.replaceState(null, "", fragment);
  }

  async restoreLink() {
    if (location.hash === this.lastLink) return;
    const value = await decodeLink(location.hash);
    if (value) this.restore(value);
  }

  restore(value) {
    const number = (given, low, high, other) => (Number.isFinite(given) ? Math.min(high, Math.max(low, given)) : other);
    const database = this.state.databases.some((one) => one.name === value.d) ? value.d : this.state.database;
    const text = typeof value.q?.text === "string" ? value.q.text.slice(0, 2000) : "";
    const home = this.state.databases.some((one) => one.name === value.q?.home) ? value.q.home : database;
    const patch = Number(value.q?.patch);
    const query = text.trim() ? { text: text.trim() }
      : Number.isInteger(patch) && patch >= 0 ? { patch, home, chip: { label: `photograph ${patch} of ${home}`, src: patchImage(home, patch, 64) } }
      : /^[0-9a-f]{64}$/.test(value.q?.image) ? { image: value.q.image, chip: { label: "a picture", src: `v1/uploads/${value.q.image}.webp?size=64` } } : null;
    this.set({
      text, query, database, isAll: value.a === 1, before: null, isComparing: false,
      settings: { k: number(value.k, 1, 32, 4), steps: number(value.steps, 1, 250, 30), guidance: number(value.guidance, 0, 50, 3), count: number(value.count, 1, 16, 4), seed: number(value.seed, 0, 2 ** 50, 0) },
      excluded: (Array.isArray(value.x) ? value.x : []).slice(0, 100).map((image_id) => ({ image_id: String(image_id), patch_id: null, database })),
    });
    if (query) this.ask();
  }

  restoreEntry(entry) {
    const { request } = entry;
    this.rememberBefore("before", "from the history");
    const [patch] = request.patches;
    const seeds = request.seeds.split(/[-,]/).map(Number);
    this.restore({
      q: { text: request.texts[0], image: request.images[0], patch: patch?.split(":").at(-1), home: patch?.includes(":") ? patch.split(":")[0] : entry.databases[0]?.name },
      d: entry.databases[0]?.name, k: request.settings.k, steps: request.settings.num_steps, guidance: request.settings.guidance_scale,
      count: request.seeds.includes("-") ? seeds[1] - seeds[0] + 1 : seeds.length, seed: seeds[0], x: request.retrieval.exclude.photographs,
    });
  }

  async forget(entry) {
    await api.forget(entry.image.id).catch(() => {});
    this.loadHistory();
  }

  async showCredits(picture) {
    this.set({ dialog: "credits", credits: null });
    try { this.set({ credits: await api.credits(picture) }); } catch (problem) { this.set({ dialog: null }); this.fail(problem); }
  }

  async copy(text, said) {
    try { await navigator.clipboard.writeText(text); this.toast(said); } catch { this.toast("The browser does not allow copying here"); }
  }

  async copyLink() { await this.saveLink(); await this.copy(location.href, "Link copied"); }
}

export const story = new Story();
export { CLIENT };
