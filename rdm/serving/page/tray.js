// The photographs that the network looks at.
import { html, useRef, useState } from "./dom.js";
import { IconButton } from "./icons.js";
import { patchImage } from "./api.js";
import { story } from "./story.js";
import { altOf, licenseName, nameOf, pageOf } from "./words.js";

export function Tray({ state, name, isCompact }) {
  const column = state.columns[name];
  const neighbors = column?.neighbors || [];
  const wanted = state.settings.k;
  const isLooking = column?.phase === "looking" && !neighbors.length;
  return html`<section class="tray" aria-labelledby=${`tray-${name}`}>
    <h2 id=${`tray-${name}`}>${isCompact ? name : "Looked at"}<small>${neighbors.length ? `${neighbors.length} of ${name}${column.ms ? `, ${Math.max(1, Math.round(column.ms))} ms` : ""}` : isLooking ? "looking up …" : ""}</small></h2>
    <${Tiles} name=${name} neighbors=${neighbors} wanted=${wanted} isCompact=${isCompact} isLooking=${isLooking} />
    ${!isCompact && html`<${Shelf} state=${state} name=${name} />`}
  </section>`;
}

/** What was taken out, to be brought back. */
export function Shelf({ state, name }) {
  const excluded = state.excluded.filter((one) => one.database === name);
  if (!excluded.length) return null;
  return html`<div class="shelf"><h3>Excluded</h3><ul>${excluded.map((one) => html`<li key=${one.image_id}>
    <button type="button" onClick=${() => story.include(one)} title="Bring it back">
      ${one.patch_id !== null ? html`<img src=${patchImage(name, one.patch_id, 64)} alt=${`Bring back ${altOf(one)}`} width="44" height="44" />` : html`<span>Bring back ${one.image_id}</span>`}</button></li>`)}</ul></div>`;
}

function Tiles({ name, neighbors, wanted, isCompact, isLooking }) {
  const [current, setCurrent] = useState(0);
  const list = useRef(null);
  const at = Math.min(current, Math.max(0, neighbors.length - 1));
  const focus = (index) => { setCurrent(index); list.current?.children[index]?.focus(); };

  const keys = (event, neighbor, index) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); focus((index + step + neighbors.length) % neighbors.length); }
    else if (event.key === "Home") focus(0);
    else if (event.key === "End") focus(neighbors.length - 1);
    else if ((event.key === "x" && story.state.keysOn) || event.key === "Delete") { event.preventDefault(); story.exclude(neighbor); }
    else if ((event.key === "+" || event.key === "-") && story.state.keysOn) { event.preventDefault(); story.weigh(neighbor, event.key === "+" ? 0.5 : -0.5); }
    else if (event.key === "m" && story.state.keysOn) { event.preventDefault(); story.like(neighbor); }
  };

  return html`<ul class="tiles" data-count=${wanted > 9 ? "many" : wanted > 4 ? "some" : "few"} ref=${list} aria-label="photographs, nearest first">
    ${neighbors.map((one, index) => html`<${Tile} key=${one.patch_id} name=${name} neighbor=${one} isCompact=${isCompact}
      tabindex=${index === at ? 0 : -1} onFocus=${() => setCurrent(index)} onKeyDown=${(event) => keys(event, one, index)} />`)}
    ${isLooking && Array.from({ length: wanted }, (_, i) => html`<li key=${`wait${i}`} class="tile waiting"><span class="well"></span></li>`)}
  </ul>`;
}

function Tile({ name, neighbor, isCompact, ...rest }) {
  const [isGone, setGone] = useState(false);
  const weight = neighbor.weight ?? 1;
  const percent = Math.round(neighbor.similarity * 100);
  return html`<li class="tile" aria-label=${`${altOf(neighbor)}, similarity ${neighbor.similarity.toFixed(2)}`} ...${rest}>
    <span class="well">${isGone || neighbor.isRemoved ? html`<span class="gone">removed on request</span>`
      : html`<img src=${patchImage(name, neighbor.patch_id, 256)} alt="" loading="eager" onError=${() => setGone(true)} />`}
      <span class="actions">
        <${IconButton} icon="like" label=${`More like ${nameOf(neighbor)}`} keys="m" tabindex="-1" onClick=${() => story.like(neighbor)} />
        <${IconButton} icon="remove" label=${`Remove ${nameOf(neighbor)} and draw again`} keys="x" tabindex="-1" onClick=${() => story.exclude(neighbor)} />
      </span></span>
    <span class="meter"><i style=${{ width: `${Math.max(3, percent)}%` }}></i></span>
    ${!isCompact && html`<span class="caption"><b>${neighbor.similarity.toFixed(2)}${weight !== 1 ? ` × ${weight}` : ""}</b> ${pageOf(neighbor) ? html`<a href=${pageOf(neighbor)} rel="noreferrer" target="_blank" tabindex="-1">${neighbor.author || nameOf(neighbor)}</a>` : neighbor.author || nameOf(neighbor)}
      <br />${neighbor.license_url ? html`<a href=${neighbor.license_url} rel="noreferrer license" target="_blank" tabindex="-1">${neighbor.license}</a>` : licenseName(neighbor.license)}</span>`}
  </li>`;
}

