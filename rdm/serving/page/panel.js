// Settings, each with a line that says what it does; and the history.
import { html } from "./dom.js";
import { IconButton } from "./icons.js";
import { defaults, story } from "./story.js";

export function Panel({ state }) {
  const { settings } = state;
  return html`<aside class="panel" aria-label="Settings">
    <h2>Settings<${IconButton} icon="remove" label="Close settings" onClick=${() => story.set({ isPanelOpen: false })} /></h2>
    <${Slider} name="k" label="Photographs" min=${1} max=${16} value=${settings.k} help="How many are looked at. The model was trained with 4." />
    <${Slider} name="guidance" label="Guidance" min=${1} max=${8} step=${0.5} value=${settings.guidance} help="How strictly the photographs are followed. 1 is as learned, and no more." />
    <${Slider} name="steps" label="Steps" min=${4} max=${100} value=${settings.steps} help="More is finer and slower. A draft takes 8." />
    <${Slider} name="seed" label="Seed" min=${0} max=${999999} value=${settings.seed} isNumber help="The noise that a picture begins with.">
      <${IconButton} icon=${state.isLocked ? "lock" : "unlock"} label=${state.isLocked ? "The seed is kept" : "Every Draw takes a new seed"} keys="s" pressed=${state.isLocked} onClick=${() => story.lockSeed()} />
    <//>
    <fieldset class="choice"><legend>Pictures</legend>${[1, 4, 9].map((count) => html`<label key=${count}><input type="radio" name="count" checked=${settings.count === count} onChange=${() => story.setting("count", count)} /><span>${count}</span></label>`)}</fieldset>
    <button type="button" class="text" onClick=${() => { story.set({ settings: { ...defaults } }); if (state.query) story.ask(); }}>Back to the defaults</button>
  </aside>`;
}

function Slider({ name, label, min, max, step = 1, value, help, isNumber, children }) {
  const change = (event) => { const given = Number(event.currentTarget.value); if (Number.isFinite(given) && event.currentTarget.value !== "") story.setting(name, Math.min(max, Math.max(min, given))); };
  return html`<div class="setting"><label for=${`set-${name}`}>${label}</label>
    <span class="inputs">${!isNumber && html`<input type="range" aria-label=${label} min=${min} max=${max} step=${step} value=${value} onInput=${change} />`}
    <input id=${`set-${name}`} type="number" inputmode="decimal" min=${min} max=${max} step=${step} value=${value} onChange=${change} aria-describedby=${`help-${name}`} />${children}</span>
    <small id=${`help-${name}`}>${help}</small></div>`;
}

export function History({ state }) {
  if (!state.history.length) return null;
  return html`<section class="history" aria-labelledby="history"><h2 id="history">Earlier pictures</h2>
    <ul>${state.history.map((entry) => html`<li key=${entry.image.id}>
      <button type="button" class="entry" onClick=${() => story.restoreEntry(entry)} title=${`${entry.label}, ${entry.databases[0]?.name}`}>
        <img src=${entry.image.thumb} width="64" height="64" loading="lazy" alt=${`Restore: ${entry.label}, ${entry.databases[0]?.name}, seed ${entry.image.seed}`} /></button>
      <${IconButton} icon="remove" label=${`Delete ${entry.label}, seed ${entry.image.seed}`} onClick=${() => story.forget(entry)} /></li>`)}
      ${state.historyCursor && html`<li key="more"><button type="button" class="more" onClick=${() => story.loadHistory(true)}>Older</button></li>`}</ul>
  </section>`;
}
