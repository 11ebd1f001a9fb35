// A dozen shapes, drawn on a grid of 24, in the manner of Lucide.
import { html } from "./dom.js";

const SHAPES = {
  remove: "M6 6l12 12M18 6L6 18",
  like: "M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14M16 16l5 5M11 8v6M8 11h6",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 7a2 2 0 1 0 4 0a2 2 0 1 0-4 0M6 17a2 2 0 1 0 4 0a2 2 0 1 0-4 0",
  theme: "M12 3a9 9 0 1 0 9 9A7 7 0 0 1 12 3z",
  keys: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M17 14h.01M8 14h6",
  compare: "M12 3v18M5 7h4v10H5zM15 7h4v10h-4z",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  dice: "M3 7h4l10 10h4M3 17h4l2.5-2.5M14.5 9.5L17 7h4M18 4l3 3-3 3M18 14l3 3-3 3",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M9 9h.01",
  lock: "M7 11V8a5 5 0 0 1 10 0v3M6 11h12v9H6z",
  unlock: "M7 11V8a5 5 0 0 1 9.6-2M6 11h12v9H6z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  stop: "M7 7h10v10H7z",
  back: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${SHAPES[name]} /></svg>`;

/** A button of an icon with a name for everybody. */
export const IconButton = ({ icon, label, pressed, onClick, keys, ...rest }) => html`
  <button type="button" class="icon-button" aria-label=${label} title=${keys ? `${label} (${keys})` : label}
    aria-pressed=${pressed === undefined ? undefined : String(pressed)} onClick=${onClick} ...${rest}><${Icon} name=${icon} /></button>`;
