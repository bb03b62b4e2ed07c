/** Elements of the page, with text and never markup in them. */

import { isolated, visible } from "/demo/model.js";

export const $ = (id) => document.getElementById(id);
export const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
export const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
export const short = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** A name of others: its direction does not turn the words around it. */
export function named(name, most = 120) {
  return make("bdi", "", visible(name, most));
}

/** Fills an element with names and words; does nothing when they are there already, so that a selection stays. */
export function fill(element, ...parts) {
  const text = parts.map((part) => (typeof part === "string" ? part : part.textContent)).join("");
  if (element.dataset.filled === text) return;
  element.dataset.filled = text;
  element.replaceChildren(...parts);
}

/** Fills an element with one name, and with the whole of it as its title. */
export function fillNamed(element, name, title = name) {
  fill(element, named(name));
  element.title = isolated(title);
}

/** Makes the children of `parent` those of `items`, keeping elements (and so the focus) by key. */
export function reconcile(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let at = null;
  for (const item of items) {
    const key = keyOf(item);
    const element = old.get(key) ?? create(item);
    old.delete(key);
    element.dataset.key = key;
    update(element, item);
    const next = at ? at.nextElementSibling : parent.firstElementChild;
    if (next !== element) parent.insertBefore(element, next);
    at = element;
  }
  for (const element of old.values()) element.remove();
}
