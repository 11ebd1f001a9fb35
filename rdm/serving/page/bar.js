// The prompt, the databases, and what starts and stops drawing.
import { html, useEffect, useRef, useState } from "./dom.js";
import { Icon, IconButton } from "./icons.js";
import { story } from "./story.js";
import { count, licenseName } from "./words.js";

export function Header({ state }) {
  return html`<header class="top">
    <h1><img src="icon.svg" alt="" width="22" height="22" />retrieval-diffusion</h1>
    <p class="status" data-status=${state.isConnected ? state.status : "offline"}>${statusText(state)}</p>
    <div class="tools">
      <${ThemeButton} />
      <${IconButton} icon="keys" label="Keyboard" keys="?" onClick=${() => story.set({ dialog: "keys" })} />
      <${IconButton} icon="settings" label="Settings" pressed=${state.isPanelOpen} onClick=${() => story.set({ isPanelOpen: !state.isPanelOpen })} />
    </div>
  </header>`;
}

function statusText(state) {
  if (!state.isConnected) return "connection lost, trying again";
  if (state.status === "draining") return "the server is shutting down";
  if (state.status === "starting") return "starting: the model is being loaded";
  return "";
}

const THEMES = ["system", "light", "dark"];

function ThemeButton() {
  const [theme, setTheme] = useState(() => localStorage.getItem("rdm-theme") || "system");
  useEffect(() => { document.documentElement.dataset.theme = theme; localStorage.setItem("rdm-theme", theme); }, [theme]);
  const next = THEMES[(THEMES.indexOf(theme) + 1) % 3];
  return html`<${IconButton} icon="theme" label=${`Theme: ${theme}; switch to ${next}`} onClick=${() => setTheme(next)} />`;
}

export function PromptBar({ state, isBusy }) {
  const field = useRef(null), file = useRef(null);
  const chip = state.query?.chip;
  const take = (files) => { const found = [...(files || [])].find((one) => one.type.startsWith("image/")); if (found) story.upload(found); return Boolean(found); };
  return html`<form class="prompt" role="search" onSubmit=${(event) => { event.preventDefault(); story.draw(); }}
      onDragOver=${(event) => event.preventDefault()} onDrop=${(event) => { event.preventDefault(); take(event.dataTransfer.files); }}>
    <div class="field">
      ${chip && !state.query.text && html`<span class="chip">${chip.src && html`<img src=${chip.src} alt="" />`}<span>${chip.label}</span>
        <${IconButton} icon="remove" label=${`Remove ${chip.label}`} onClick=${() => { story.clearQuery(); field.current.focus(); }} /></span>`}
      <label class="hidden" for="prompt">What shall be drawn</label>
      <input id="prompt" ref=${field} type="text" autocomplete="off" autocapitalize="off" spellcheck="false" enterkeyhint="go" maxlength="2000"
        placeholder=${chip ? "or type something" : "Type what to look up, and draw"} value=${state.text}
        onInput=${(event) => story.type(event.currentTarget.value)}
        onPaste=${(event) => { if (take(event.clipboardData.files)) event.preventDefault(); }} />
      <input ref=${file} type="file" accept="image/*" class="hidden" tabindex="-1" aria-hidden="true" onChange=${(event) => { take(event.currentTarget.files); event.currentTarget.value = ""; }} />
      <${IconButton} icon="picture" label="Ask with a picture" onClick=${() => file.current.click()} />
      <${IconButton} icon="dice" label="Surprise me" onClick=${() => story.surprise()} />
      ${isBusy
        ? html`<button type="button" class="primary" key="stop" onClick=${() => story.stop()}>Stop</button>`
        : html`<button type="submit" class="primary" key="draw" disabled=${!state.query || !state.models.length}>Draw</button>`}
    </div>
    <${DatabaseSwitch} state=${state} />
  </form>`;
}

function DatabaseSwitch({ state }) {
  const { databases, database, isAll, models } = state;
  if (!databases.length) return html`<p class="quiet">Opening the databases …</p>`;
  const usable = (one) => !models.length || one.models.length > 0;
  const shown = databases.filter(usable);
  return html`<fieldset class="switch"><legend class="hidden">Database</legend>
    ${databases.map((one) => html`<label key=${one.name} data-off=${!usable(one)} title=${usable(one) ? "" : Object.values(one.refused)[0]}>
      <input type="radio" name="database" checked=${!isAll && one.name === database} disabled=${!usable(one)} onChange=${() => story.swap(one.name)} />
      <span><b>${one.name}</b> <small>${usable(one) ? `${count(one.photographs, "photograph")}${licenseOf(one)}` : "of another encoder"}</small></span></label>`)}
    ${shown.length > 1 && html`<label key="*all"><input type="radio" name="database" checked=${isAll} onChange=${() => story.sideBySide()} /><span><b>side by side</b></span></label>`}
  </fieldset>`;
}

const licenseOf = (database) => {
  const known = database.licenses.filter((one) => one.license);
  return known.length === 1 ? `, ${licenseName(known[0].license)}` : "";
};
