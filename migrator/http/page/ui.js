/** The library that the views are written with, in one place. */
import {h, render, Fragment} from "./vendor/preact.js";
import {useEffect, useLayoutEffect, useRef, useState, useMemo, useId} from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);
export {render, Fragment, useEffect, useLayoutEffect, useRef, useState, useMemo, useId};
