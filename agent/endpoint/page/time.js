// Times as people say them. The clock is that of the agent.

import { el, setText } from "./dom.js";

let skew = 0; // of the agent's clock, in milliseconds

/** setClock takes the agent's time from an answer that was asked for and came in between. */
export function setClock(time, asked, came) {
  skew = Date.parse(time) - (asked + came) / 2;
}

/** now returns the agent's time in milliseconds. */
export const now = () => Date.now() + skew;

/** span says how long milliseconds are, in at most two units. */
export function span(milliseconds) {
  const s = Math.max(0, Math.round(milliseconds / 1000));
  if (s < 60) return `${s}\u00a0s`;
  const m = Math.floor(s / 60);
  if (m < 10 && s % 60) return `${m}\u00a0min ${s % 60}\u00a0s`;
  if (m < 60) return `${m}\u00a0min`;
  const h = Math.floor(m / 60);
  if (h < 24) return m % 60 ? `${h}\u00a0h ${m % 60}\u00a0min` : `${h}\u00a0h`;
  const d = Math.floor(h / 24);
  return h % 24 && d < 10 ? `${d}\u00a0d ${h % 24}\u00a0h` : `${d}\u00a0d`;
}

const sameDay = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const otherDay = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** moment says when a time is, with the date when that is not today. */
export function moment(time) {
  const at = new Date(time);
  return (at.toDateString() === new Date().toDateString() ? sameDay : otherDay).format(at);
}

const forms = {
  ago: (at) => (now() - at < 1500 ? "just now" : `${span(now() - at)} ago`),
  in: (at) => (at - now() < 500 ? "now" : `in ${span(at - now())}`),
  for: (at) => `for ${span(now() - at)}`,
};

/** when makes an element that says how far away a time is, and goes on saying it. */
export function when(time, form) {
  if (!time) return el("span", { class: "quiet" }, "–");
  const node = el("time", { datetime: time, "data-form": form, title: moment(time) });
  node.textContent = forms[form](Date.parse(time));
  return node;
}

/** tick brings what [when] made up to date. */
export function tick() {
  for (const node of document.querySelectorAll("time[data-form]")) {
    setText(node, forms[node.dataset.form](Date.parse(node.dateTime)));
  }
}
