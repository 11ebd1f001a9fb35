// The page: it puts the views together and listens to the keyboard.
import { html, render, useEffect, useState } from "./dom.js";
import { Header, PromptBar } from "./bar.js";
import { Dialogs, SignIn } from "./dialogs.js";
import { History, Panel } from "./panel.js";
import { ProblemBox, Stage } from "./stage.js";
import { Shelf, Tray } from "./tray.js";
import { patchImage } from "./api.js";
import { story } from "./story.js";
import { altOf } from "./words.js";

const PROMPTS = ["a blue sky over the sea", "a red sunset", "a yellow flower", "gold and dark red"];

function App() {
  const [state, setState] = useState(story.state);
  useEffect(() => story.subscribe(setState), []);
  useEffect(() => { story.start(); }, []);
  useEffect(() => { const listen = (event) => keys(event); addEventListener("keydown", listen); return () => removeEventListener("keydown", listen); }, []);
  const isBusy = story.isBusy;
  useEffect(() => { document.title = isBusy ? "drawing … retrieval-diffusion" : "retrieval-diffusion"; }, [isBusy]);
  if (state.needsToken) return html`<${SignIn} />`;
  return html`
    <a class="skip" href="#prompt" onClick=${(event) => { event.preventDefault(); document.getElementById("prompt").focus(); }}>To the prompt</a>
    <${Header} state=${state} />
    <${PromptBar} state=${state} isBusy=${isBusy} />
    <main data-panel=${state.isPanelOpen} data-empty=${!state.query}>
      ${state.problem && html`<${ProblemBox} problem=${state.problem} />`}
      ${state.query ? html`<${Story} state=${state} />` : html`<${Empty} state=${state} />`}
      ${state.isPanelOpen && html`<${Panel} state=${state} />`}
    </main>
    <${History} state=${state} />
    <p class="hidden" role="status" aria-live="polite">${state.message}</p>
    ${state.toast && html`<p class="toast">${state.toast}</p>`}
    <${Dialogs} state=${state} />`;
}

function Story({ state }) {
  const names = story.shownNames().filter(Boolean);
  if (!state.isAll) {
    return html`<div class="story"><${Tray} state=${state} name=${names[0]} />
      <svg class="arrow" viewBox="0 0 18 12" aria-hidden="true"><path d="M0 6h15M10 1l5 5-5 5" fill="none" stroke="currentColor" stroke-width="1.5" /></svg>
      ${state.models.length ? html`<${Stage} state=${state} name=${names[0]} />` : html`<p class="quiet">No model is served: photographs can be searched, pictures not drawn.</p>`}</div>`;
  }
  return html`<div class="sides" data-count=${names.length}>${names.map((name) => html`<div class="side" key=${name}><${Tray} state=${state} name=${name} isCompact /><${Stage} state=${state} name=${name} isCompact /><${Shelf} state=${state} name=${name} /></div>`)}</div>`;
}

function Empty({ state }) {
  const samples = state.samples[state.database] || [];
  return html`<div class="empty">
    <h2>The network draws from photographs that it looks up while you type.</h2>
    <p>Remove one, and it leaves the picture. Take another database, and the same noise becomes something else. Every picture knows whom to credit.</p>
    <div class="begin"><span>Begin with</span>${PROMPTS.map((text) => html`<button type="button" key=${text} onClick=${() => { story.type(text); document.getElementById("prompt").focus(); }}>${text}</button>`)}</div>
    ${samples.length > 0 && html`<div class="begin photographs"><span>or a photograph</span><ul>${samples.map((one) => html`<li key=${one.patch_id}><button type="button" onClick=${() => story.like(one)}>
      <img src=${patchImage(state.database, one.patch_id, 128)} width="96" height="96" alt=${`Begin with ${altOf(one)}`} /></button></li>`)}</ul></div>`}
  </div>`;
}

const inField = (target) => target.matches?.("input:not([type=radio]):not([type=range]):not([type=checkbox]), textarea, select");

function keys(event) {
  if (event.defaultPrevented || event.metaKey || event.ctrlKey || event.altKey) return;
  const { state } = story;
  if (event.key === "Escape") { if (story.isBusy && !state.dialog) story.stop(); else if (state.isComparing) story.compare(); else if (state.isPanelOpen) story.set({ isPanelOpen: false }); return; }
  if (inField(event.target) || state.dialog) return;
  const act = {
    "/": () => document.getElementById("prompt").focus(), "?": () => story.set({ dialog: "keys" }), c: () => story.compare(),
    "[": () => story.moveWipe(-10), "]": () => story.moveWipe(10), r: () => story.newSeed(), s: () => story.lockSeed(),
    u: () => { const last = state.excluded.at(-1); if (last) story.include(last); },
    d: () => { const names = state.databases.filter((one) => one.models.length).map((one) => one.name); if (names.length) story.swap(names[(names.indexOf(state.database) + 1) % names.length]); },
  }[event.key];
  if (act && (state.keysOn || event.key === "?")) { event.preventDefault(); act(); }
}

render(html`<${App} />`, document.getElementById("app"));
