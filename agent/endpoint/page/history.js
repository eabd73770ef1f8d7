// The history of a secret since the agent started, as a strip and in words.

import { el } from "./dom.js";
import { moment, now } from "./time.js";

/**
 * bands returns what the history of a secret amounts to between from and to: versions, one
 * after the other, with gaps of nothing, and runs of failures and of stale answers.
 */
function bands(secret, from, to) {
  const versions = [], failed = [], stale = [], gone = [];
  let current = null;
  const close = (at) => {
    if (current) versions.push({ ...current, to: at });
    current = null;
  };
  const running = secret.Failures > 0; // the last run of failures goes on
  const events = secret.History ?? [];
  for (const event of events) {
    const first = Date.parse(event.First), last = Date.parse(event.Last);
    switch (event.Kind) {
      case "version":
        close(first);
        current = { from: first, text: event.VersionId };
        break;
      case "gone":
      case "lapsed":
        close(first);
        gone.push({ from: first, text: event.Code ?? "too old" });
        break;
      case "failed":
        failed.push({ from: first, to: last, text: event.Code });
        break;
      case "stale":
        stale.push({ from: first, to: last, text: event.Code });
        break;
    }
  }
  if (running && failed.length) failed.at(-1).to = to;
  if (!current && secret.Held && !gone.length) current = { from, text: secret.VersionId };
  if (current) close(to);
  for (const gap of gone) gap.to = versions.find((v) => v.from >= gap.from)?.from ?? to;
  return { versions, failed, stale, gone };
}

const drawnAt = new WeakMap(); // strip → what it was drawn from

/** strip draws the history of secret into node, which is a picture with a text of its own. */
export function strip(node, secret, startedAt) {
  const from = Date.parse(startedAt), to = Math.max(now(), from + 1000);
  const before = drawnAt.get(node);
  const mark = JSON.stringify([secret.History, secret.VersionId, secret.Held, secret.Failures > 0]);
  if (before?.mark === mark && (to - before.to) / (to - from) < 0.002) return; // nobody would see it
  drawnAt.set(node, { mark, to });
  const drawn = bands(secret, from, to);
  const parts = [];
  const add = (kind, band, text) => {
    const left = clamp((band.from - from) / (to - from)), right = clamp((band.to - from) / (to - from));
    const part = el("span", { class: kind }, text);
    part.style.left = `${(left * 100).toFixed(2)}%`;
    part.style.width = `${((right - left) * 100).toFixed(2)}%`;
    parts.push(part);
  };
  drawn.versions.forEach((band, i) => add(i % 2 ? "version odd" : "version", band, band.text));
  drawn.gone.forEach((band) => add("gone", band));
  drawn.failed.forEach((band) => add("failed", band));
  drawn.stale.forEach((band) => add("stale", band));
  node.replaceChildren(...parts);
  const words = summary(secret);
  if (node.getAttribute("aria-label") !== words) node.setAttribute("aria-label", words);
}

const clamp = (x) => Math.min(1, Math.max(0, x));

/** summary says in one sentence what strip shows. */
function summary(secret) {
  const counts = { version: 0, failed: 0, stale: 0 };
  for (const event of secret.History ?? []) if (event.Kind in counts) counts[event.Kind] += event.Kind === "version" ? 1 : event.Count;
  const words = [];
  if (counts.version > 1) words.push(`${counts.version} versions were in use`);
  else if (secret.VersionId) words.push(`version ${secret.VersionId} all the time`);
  if (counts.failed) words.push(`${counts.failed} failed refreshes`);
  if (counts.stale) words.push(`${counts.stale} stale answers`);
  return words.length ? `Since start: ${words.join(", ")}` : "Since start: nothing held";
}

/** story returns the history in words, newest first. */
export function story(secret) {
  const lines = [...(secret.History ?? [])].reverse().map((event) => {
    const span = event.Count > 1 ? `${moment(event.First)} to ${moment(event.Last)}` : moment(event.First);
    const times = event.Count === 1 ? "once" : `${event.Count} times`;
    const what = {
      version: `Version ${event.VersionId} came into use`,
      gone: `There is none: ${event.Code}`,
      lapsed: "Too old to be served, dropped",
      failed: `Refresh failed ${times}: ${event.Code}`,
      stale: `Stale answer ${times}: ${event.Code}`,
    }[event.Kind] ?? event.Kind;
    return el("li", { class: event.Kind }, el("span", { class: "at" }, span), " ", el("span", {}, what));
  });
  if (secret.HistoryDropped) lines.push(el("li", { class: "quiet" }, `${secret.HistoryDropped} older events had to make room.`));
  return lines;
}
