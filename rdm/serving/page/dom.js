// What every view imports: the library, bound once.
import { h, render, Fragment } from "./vendor/preact.js";
import { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

const html = htm.bind(h);
export { html, render, Fragment, useEffect, useLayoutEffect, useRef, useState };
