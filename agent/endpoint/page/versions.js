// The versions of a secret in the built-in backend, as the picture of the object model:
// versions in a row, labels as flags on them.

import { el, read, rebuild } from "./dom.js";
import { moment } from "./time.js";

/** versions asks for the versions of a secret and draws them into node. */
export async function versions(node, name) {
  let list;
  try {
    const answer = await fetch(`/status/versions?secretId=${encodeURIComponent(name)}`, {
      headers: { Accept: "application/json" }, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(8000),
    });
    if (!answer.ok) return; // what is drawn stays; the next status tells what is wrong
    list = read(await answer.text());
  } catch {
    return;
  }
  const before = node.lastElementChild;
  rebuild(node, list, draw);
  if (node.lastElementChild !== before) node.scrollLeft = node.scrollWidth; // the newest first
}

function draw(list) {
  const row = el("ol", { class: "row" });
  for (const version of list.Versions) {
    const labels = version.VersionStages ?? [];
    const flags = labels.map((label) => el("li", { class: label === "ACSCurrent" ? "flag current" : "flag" }, label));
    row.append(el("li", { class: labels.length ? "box" : "box deprecated" },
      el("ul", { class: "flags", "aria-label": "Labels" }, ...(flags.length ? flags : [el("li", { class: "none" }, "no label")])),
      el("span", { class: "id" }, version.VersionId),
      el("time", { datetime: version.CreateTime, class: "quiet" }, moment(version.CreateTime))));
  }
  return [row];
}
