// The pictures, what became of them, and the wipe between before and after.
import { html, useEffect, useRef, useState } from "./dom.js";
import { Icon } from "./icons.js";
import { story } from "./story.js";
import { count, ordinal } from "./words.js";

export function Stage({ state, name, isCompact }) {
  const column = state.columns[name];
  const images = column?.images || [];
  const compares = state.isComparing && state.before && !isCompact;
  return html`<section class="stage" aria-label=${isCompact ? `Drawn from ${name}` : "Drawn"}>
    ${!isCompact && html`<h2>Drawn<small>${progressText(column)}</small></h2>`}
    ${isCompact && html`<p class="progress">${progressText(column)}</p>`}
    <div class="pictures" data-count=${images.length > 1 ? (images.length > 4 ? "many" : "four") : "one"} data-compares=${compares}>
      ${images.map((image) => html`<${Picture} key=${image.index} image=${image} before=${compares ? state.before.images[image.index] : null} wipe=${state.wipe} label=${labelOf(state, name)} />`)}
      ${!images.length && html`<div class="picture waiting"><span class="well"></span></div>`}
    </div>
    ${compares && html`<${Wipe} state=${state} images=${images} />`}
    ${column?.problem && html`<${ProblemBox} problem=${column.problem} onRetry=${() => story.ask()} />`}
    ${!isCompact && html`<${Facts} state=${state} column=${column} name=${name} />`}
    ${isCompact && column?.images[0]?.picture && html`<p class="facts"><button type="button" class="text" onClick=${() => story.showCredits(column.images[0].picture)}>Credits: ${count(column.neighbors.length, "photograph")}</button></p>`}
  </section>`;
}

const labelOf = (state, name) => `${state.query?.text || state.query?.chip?.label || "a picture"}, from ${name}`;

function progressText(column) {
  if (!column) return "";
  const at = column.images.find((image) => image.of);
  if (column.phase === "looking") return "looking up …";
  if (column.phase === "queued" && column.position > 1) return `${ordinal(column.position)} in line, about ${Math.max(1, Math.round(column.secondsLeft))} s`;
  if (column.phase === "queued") return column.isDraft ? "a first draft …" : "waiting for a drawer …";
  if (column.phase === "drawing" && column.isDraft) return "a first draft …";
  if (column.phase === "drawing") return at ? `step ${at.step} of ${at.of}` : "drawing …";
  if (column.phase === "error") return "";
  if (column.isDraft && column.images.length) return "draft";
  return column.seconds ? `${column.seconds.toFixed(1)} s` : "";
}

function Picture({ image, before, wipe, label }) {
  const alt = `drawn for ${label}, seed ${image.seed}`;
  if (before) {
    return html`<figure class="picture compared" style=${{ "--wipe": `${wipe}%` }}>
      <span class="well"><img class="after" src=${image.src || before.src} alt=${`after: ${alt}`} /><img class="before" src=${before.src} alt=${`before: ${alt}`} /><i class="line"></i></span></figure>`;
  }
  return html`<figure class="picture" data-old=${image.isOld}>
    <span class="well">${image.src && html`<img src=${image.src} alt=${alt} />`}
      ${image.of > 0 && html`<span class="steps"><i style=${{ width: `${(100 * image.step) / image.of}%` }}></i></span>`}</span>
  </figure>`;
}

function Wipe({ state, images }) {
  const changed = useChange(state.before.images, images);
  return html`<div class="wipe">
    <span>${state.before.beforeLabel}</span>
    <label class="hidden" for="wipe">Move between before and after</label>
    <input id="wipe" type="range" min="0" max="100" value=${state.wipe} onInput=${(event) => story.set({ wipe: Number(event.currentTarget.value) })} />
    <span>${state.before.afterLabel}</span>
    <output>${changed === null ? "" : `the pictures differ by ${changed}% of their range; the noise is the same`}</output>
    <button type="button" class="text" onClick=${() => story.compare()}>Close</button>
  </div>`;
}

/** Mean absolute difference of two sets of pictures in percent, once all are drawn. */
function useChange(before, after) {
  const [percent, setPercent] = useState(null);
  const sources = after.map((image) => image.picture && image.src);
  const key = sources.join();
  useEffect(() => {
    setPercent(null);
    if (!sources.every(Boolean) || !sources.length) return undefined;
    let isOver = false;
    Promise.all(after.map((image, i) => Promise.all([pixels(before[i]?.src), pixels(image.src)]))).then((pairs) => {
      if (isOver) return;
      const means = pairs.map(([a, b]) => a && b ? a.reduce((sum, value, i) => sum + Math.abs(value - b[i]), 0) / a.length : 0);
      setPercent(Math.round((100 * means.reduce((x, y) => x + y, 0)) / means.length / 255));
    }).catch(() => {});
    return () => { isOver = true; };
  }, [key]);
  return percent;
}

async function pixels(src) {
  if (!src) return null;
  const image = new Image();
  image.src = src;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, 64, 64);
  return Array.from(context.getImageData(0, 0, 64, 64).data).filter((_, i) => i % 4 !== 3);
}

function Facts({ state, column, name }) {
  const done = (column?.images || []).filter((image) => image.picture);
  const first = done[0]?.picture;
  const seeds = state.settings.count > 1 ? `seeds ${state.settings.seed} to ${state.settings.seed + state.settings.count - 1}` : `seed ${state.settings.seed}`;
  const save = () => { for (const image of done) { const a = document.createElement("a"); a.href = image.picture.url; a.download = ""; a.click(); } };
  if (!column?.images.length) return null;
  return html`<div class="facts">
    <p>${seeds}, ${column.isDraft ? "draft" : `${state.settings.steps} steps`}${column.version ? `, ${name} version ${column.version}` : ""}</p>
    <div class="toolbar">
      <button type="button" onClick=${() => story.showCredits(first)} disabled=${!first}><${Icon} name="copy" />Credits: ${count(column.neighbors.length, "photograph")}</button>
      ${state.before && html`<button type="button" aria-pressed=${String(state.isComparing)} onClick=${() => story.compare()}><${Icon} name="compare" />Compare</button>`}
      <button type="button" onClick=${save} disabled=${!first}><${Icon} name="save" />Save</button>
      <button type="button" onClick=${() => story.copyLink()}><${Icon} name="link" />Link</button>
      <button type="button" onClick=${() => story.newSeed()}><${Icon} name="dice" />New seed</button>
    </div></div>`;
}

export function ProblemBox({ problem, onRetry }) {
  return html`<div class="problem" role="alert"><p><b>${problem.message}</b>${problem.where ? ` (${problem.where})` : ""}</p>
    ${problem.fix && html`<p>${problem.fix}</p>`}
    ${onRetry && html`<button type="button" onClick=${onRetry}>Try again</button>`}</div>`;
}
