// Credits, the keyboard list, and signing in.
import { html, useEffect, useRef, useState } from "./dom.js";
import { Icon, IconButton } from "./icons.js";
import { api, patchImage } from "./api.js";
import { story } from "./story.js";
import { authorName, count, licenseName, nameOf, pageOf } from "./words.js";

function Dialog({ title, children, onClose }) {
  const element = useRef(null);
  useEffect(() => { if (!element.current.open) element.current.showModal(); }, []);
  return html`<dialog ref=${element} aria-labelledby="dialog-title" onClose=${onClose} onClick=${(event) => { if (event.target === element.current) onClose(); }}>
    <div class="sheet"><h2 id="dialog-title">${title}<${IconButton} icon="remove" label="Close" onClick=${onClose} /></h2>${children}</div></dialog>`;
}

const close = () => story.set({ dialog: null });

export function Dialogs({ state }) {
  if (state.dialog === "credits") return html`<${Credits} credits=${state.credits} />`;
  if (state.dialog === "keys") return html`<${Keys} state=${state} />`;
  return null;
}

function Credits({ credits }) {
  const [authors, setAuthors] = useState(null);
  if (!credits) return html`<${Dialog} title="Credits" onClose=${close}><p class="quiet">Looking up whom to credit …</p><//>`;
  const homes = credits.databases.map((one) => one.name).join(" and ");
  const named = [...new Set(credits.neighbors.map((one) => one.author).filter(Boolean))];
  return html`<${Dialog} title="Credits" onClose=${close}>
    <p>This picture looked at ${count(credits.neighbors.length, "photograph")} of ${homes}${named.length ? ` by ${named.join(", ")}` : ""}.</p>
    <ol class="credits">${credits.neighbors.map((one) => html`<li key=${`${one.database} ${one.patch_id}`}>
      ${one.is_removed ? html`<span class="gone">removed on request</span>` : html`<img src=${patchImage(one.database, one.patch_id, 128)} alt="" width="56" height="56" />
      <span><b>${pageOf(one) ? html`<a href=${pageOf(one)} rel="noreferrer" target="_blank">${nameOf(one)}</a>` : nameOf(one)}</b> ${authorName(one.author)}<br />
      ${one.license_url ? html`<a href=${one.license_url} rel="noreferrer license" target="_blank">${one.license}</a>` : licenseName(one.license)}, similarity ${one.similarity.toFixed(2)}</span>`}</li>`)}</ol>
    ${credits.conditioned_on_removed && html`<p class="quiet">A photograph that this picture looked at was removed since, at its owner's request.</p>`}
    ${credits.note && html`<p class="quiet">${credits.note} ${authors ? "" : html`<button type="button" class="text" onClick=${() => api.authors(credits.databases[0].name).then((found) => setAuthors(found.data)).catch((problem) => story.fail(problem))}>Show the list</button>`}</p>`}
    ${authors && html`<ul class="authors" tabindex="0" aria-label="Authors">${authors.map((one) => html`<li key=${one.url + one.name}><a href=${one.url} rel="noreferrer" target="_blank">${one.name}</a></li>`)}</ul>`}
    <p class="buttons"><button type="button" class="primary" onClick=${() => story.copy(credits.text, "Credits copied")}><${Icon} name="copy" />Copy as text</button>
      <a class="button" href=${`v1/images/${credits.picture}/recipe`} target="_blank">Recipe</a></p>
  <//>`;
}

const KEYS = [
  ["/", "write in the prompt"], ["Enter", "draw with every step"], ["Esc", "stop, or close what is open"], ["← →", "go through the photographs"],
  ["x", "remove the focused photograph, draw again"], ["m", "more like the focused photograph"], ["+ -", "weigh the focused photograph more, or less"], ["u", "bring the last removed photograph back"],
  ["c", "compare before and after"], ["[ ]", "move the wipe"], ["r", "new seed"], ["s", "keep the seed, or not"], ["d", "next database"], ["?", "this list"],
];

function Keys({ state }) {
  return html`<${Dialog} title="Keyboard" onClose=${close}>
    <dl class="keys">${KEYS.map(([key, what]) => html`<div key=${key}><dt>${key.split(" ").map((one) => html`<kbd>${one}</kbd>`)}</dt><dd>${what}</dd></div>`)}</dl>
    <label class="check"><input type="checkbox" checked=${state.keysOn} onChange=${() => story.set({ keysOn: !state.keysOn })} /> Keys of single letters act outside of fields</label><//>`;
}

export function SignIn() {
  const [problem, setProblem] = useState(null);
  const submit = (event) => { event.preventDefault(); story.signIn(new FormData(event.currentTarget).get("token")).catch(setProblem); };
  return html`<main class="sign-in"><form onSubmit=${submit}><h1>retrieval-diffusion</h1><p>This server wants its token, once for this browser.</p>
    <label for="token">Token</label><input id="token" name="token" type="password" autocomplete="current-password" required autofocus />
    ${problem && html`<p class="problem" role="alert">${problem.message}</p>`}<button class="primary">Sign in</button></form></main>`;
}
