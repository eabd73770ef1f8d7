// Draws a status.

import { byId, el, keyed, rebuild, setClass, setText } from "./dom.js";
import { story, strip } from "./history.js";
import { moment, now, span, when } from "./time.js";
import { versions } from "./versions.js";

const maxRows = 500; // drawn at once; the filter finds the others
const maxOpen = 8; // secrets whose details are shown at once
const soon = 14 * 24 * 3600e3; // when the end of a certificate needs attention

const glyphs = { ok: "✓", warn: "!", bad: "✕", idle: "○" };

let status = null;
let shown = 0; // statuses that were drawn
let open = new Set(); // secrets whose details are shown, oldest first

// ---------------------------------------------------------------- what it means

/** stateOf returns how a secret is doing: how grave it is, and in a word. */
function stateOf(s) {
  if (s.Held && s.Fresh) return s.Failures ? { level: "warn", word: "refresh fails" } : { level: "ok", word: "fresh" };
  if (s.Held) return s.ServedUntil ? { level: "warn", word: "stale" } : { level: "idle", word: "expired" };
  if (s.Declared) return { level: "bad", word: "missing" };
  return { level: "idle", word: s.Error ? "refused" : "not held" };
}

/** why returns the reason of the last failure: in words where they are known. */
const why = (s) => s.Cause ?? s.Error;

/** onlyAsked tells a name that somebody asked for, and that is not there. */
const onlyAsked = (s) => !s.Held && !s.Declared && !s.Subscribers;

/** attention returns what a person should look at, gravest first. */
function attention(s) {
  const list = [];
  const add = (level, title, text) => list.push({ level, title, text });
  const known = new Set();
  for (const p of s.Problems) {
    known.add(p.Subject);
    add(s.Ready ? "warn" : "bad", p.Subject.replace(/^(secret .*):ACSCurrent$/, "$1"), p.Reason);
  }
  if (s.Upstream.Outage) add("warn", "the upstream does not answer", `${s.Upstream.Cause ?? s.Upstream.Outage}; last good values are served${firstEnd(s)}`);
  const said = s.Upstream.Outage && (s.Upstream.Cause ?? s.Upstream.Outage); // of all that are served meanwhile
  const failing = s.Secrets.filter((x) => ["warn", "bad"].includes(stateOf(x).level) && !known.has(`secret ${x.Secret}`) && !(x.Held && said && why(x) === said));
  for (const x of failing.slice(0, 5)) {
    const since = x.ConfirmedAt ? `, confirmed last at ${moment(x.ConfirmedAt)}` : "";
    const until = x.ServedUntil ? `, served until ${moment(x.ServedUntil)}` : "";
    add(stateOf(x).level, `secret ${spelled(x)}`, `${stateOf(x).word}: ${why(x) ?? "no answer yet"}${since}${until}`);
  }
  if (failing.length > 5) add("warn", `${failing.length - 5} more secrets`, "stand first in the list below");
  for (const f of s.Files) {
    if (known.has(`file ${f.Path}`)) continue;
    if (f.State === "failed") add("bad", `file ${f.Path}`, f.Error ?? "not rendered");
    else if (f.HookFailed) add("bad", `file ${f.Path}`, `its hook failed: ${f.HookError ?? "the log says why"}`);
  }
  if (s.Child?.Failing) add("bad", `application ${s.Child.Command}`, s.Child.Error ?? "fails");
  for (const r of s.Rotations ?? []) {
    if (r.Error) add(r.State === "failed" ? "bad" : "warn", `rotation of ${r.SecretName}`, `step ${r.Step} fails: ${r.Error}`);
  }
  if (s.Upstream.Alibaba?.Credential.Error) add("warn", "the credentials of the agent", s.Upstream.Alibaba.Credential.Error);
  const ends = (what, at) => {
    const left = at ? Date.parse(at) - now() : Infinity;
    if (left < soon) add(left < 0 ? "bad" : "warn", what, left < 0 ? "has expired" : `ends in ${span(left)}`);
  };
  for (const l of s.Listeners) {
    ends(`certificate of ${l.Address}`, l.CertificateExpires);
    ends(`authority of the clients of ${l.Address}`, l.ClientCAExpires);
  }
  ends("authority of the upstream", s.Upstream.Alibaba?.CAExpires);
  if (s.Reload?.Failed && !known.has("configuration, not reloaded")) add("warn", "the last reload failed", s.Reload.Error ?? "the log says why");
  return list.sort((a, b) => (a.level === "bad" ? 0 : 1) - (b.level === "bad" ? 0 : 1));
}

const earliest = (items, key) => items.filter((x) => x[key]).sort((a, b) => Date.parse(a[key]) - Date.parse(b[key]))[0];
const firstEnd = (s) => (earliest(s.Secrets, "ServedUntil") ? `, the first until ${moment(earliest(s.Secrets, "ServedUntil").ServedUntil)}` : "");
const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** lastFailure returns what failed last since the start, or nothing. */
function lastFailure(s) {
  let last = null;
  const see = (at, what) => {
    if (at && (!last || Date.parse(at) > Date.parse(last.at))) last = { at, what };
  };
  for (const x of s.Secrets) {
    see(x.ErrorAt, `${spelled(x)}: ${why(x)}`);
    for (const e of x.History ?? []) if (e.Kind === "failed") see(e.Last, `${spelled(x)}: ${e.Code}`);
  }
  see(s.Child?.ErrorAt, `application: ${s.Child?.Error}`);
  for (const f of s.Files) if (f.State === "failed" || f.HookFailed) see(f.TriedAt, f.Path);
  if (s.Reload?.Failed) see(s.Reload.At, "reload of the configuration");
  return last;
}

// ---------------------------------------------------------------- drawing

/** draw shows a status that has just come. */
export function draw(next) {
  status = next;
  setText(byId("version"), status.Version);
  const list = attention(status);
  drawHero(list);
  drawGlance();
  drawAttention(list);
  if (shown === 0 && status.Secrets.length > 0 && status.Secrets.length <= 3) open.add(status.Secrets[0].Secret);
  drawSecrets();
  drawFiles();
  drawFacts();
  shown++;
}

function drawHero(list) {
  const bad = list.some((x) => x.level === "bad");
  const level = bad ? "bad" : list.length ? "warn" : "ok";
  setClass(byId("sign"), `sign ${level}`);
  setText(byId("sign"), glyphs[level]);
  const headline = list.length === 0 ? "All is well" : `${plural(list.length, "thing needs", "things need")} attention`;
  setText(byId("headline"), headline);
  document.title = list.length ? `(${list.length}) secretagent` : "✓ secretagent";
  const held = status.Secrets.filter((s) => s.Held).length;
  const parts = [`Holding ${plural(held, "secret")}`];
  if (status.Files.length) parts.push(`for ${plural(status.Files.length, "file")}`);
  if (status.Child) parts.push(`${status.Files.length ? "and" : "for"} ${status.Child.Command}`);
  setText(byId("subline"), `${parts.join(" ")}${status.Ready ? "" : ", not ready"}.`);
}

function tile(title, value, note, level) {
  return el("div", { class: level ? `tile ${level}` : "tile" },
    el("dt", {}, title), el("dd", {}, el("span", { class: "value" }, value), el("span", { class: "note" }, ...[note].flat())));
}

function drawGlance() {
  const held = status.Secrets.filter((s) => s.Held);
  const declared = status.Secrets.filter((s) => s.Declared);
  const missing = declared.filter((s) => !s.Held).length;
  const fresh = held.filter((s) => s.Fresh).length;
  const stale = held.filter((s) => stateOf(s).word === "stale").length;
  const oldest = earliest(held, "ConfirmedAt");
  const refresh = earliest(status.Secrets, "NextRefresh");
  const attempt = earliest(status.Files, "NextTry");
  const file = attempt && (!refresh || Date.parse(attempt.NextTry) < Date.parse(refresh.NextRefresh));
  const failure = lastFailure(status);
  const up = status.Upstream;
  const failing = up.Alibaba?.Endpoints.every((e) => e.Failures > 0);
  const model = { held: held.length, declared: declared.length, missing, fresh, stale, omitted: status.SecretsOmitted,
    oldest: oldest?.ConfirmedAt, next: file ? [attempt.Path, attempt.NextTry] : [refresh && spelled(refresh), refresh?.NextRefresh],
    failure, failing, outage: up.Outage, kind: up.Kind, at: up.Alibaba?.Endpoint, breaker: up.Alibaba?.Breaker.State };
  rebuild(byId("glance"), model, (m) => [
    tile("Held", `${(m.held + (m.omitted ?? 0)).toLocaleString("en")}`, m.missing ? `${m.missing} of ${m.declared} declared missing` : `${m.declared} declared, all there`, m.missing && "bad"),
    tile("Fresh", m.held ? `${Math.floor((m.fresh / m.held) * 100)} %` : "–",
      [m.stale ? `${m.stale} stale; ` : "", m.oldest ? "oldest confirmed " : "nothing confirmed yet", m.oldest && when(m.oldest, "ago")], m.stale && "warn"),
    tile("Next", m.next[1] ? when(m.next[1], "in") : "–", m.next[0] ? `${file ? "render" : "refresh"} ${m.next[0]}` : "nothing is planned"),
    tile("Failed last", m.failure ? when(m.failure.at, "ago") : "never", m.failure ? m.failure.what : "since the start", m.failure && Date.now() - Date.parse(m.failure.at) < 600e3 && "warn"),
    tile("Upstream", m.outage ? "down" : m.failing ? "fails" : m.breaker && m.breaker !== "closed" ? `breaker ${m.breaker}` : "answers",
      m.kind === "local" ? "built-in backend" : `Alibaba Cloud KMS ${m.at ?? ""}`, (m.outage || m.failing) && "warn"),
  ]);
}

function drawAttention(list) {
  byId("attention").hidden = list.length === 0;
  rebuild(byId("attention-list"), list, (items) => items.map((x) =>
    el("li", { class: x.level }, el("span", { class: "glyph", "aria-hidden": "true" }, glyphs[x.level]),
      el("div", {}, el("strong", {}, x.title), " ", el("span", {}, x.text)))));
}

// ---------------------------------------------------------------- secrets

const rank = { bad: 0, warn: 1, ok: 2, idle: 3 };
const byName = (a, b) => (a.Secret < b.Secret ? -1 : a.Secret > b.Secret ? 1 : 0);
const changedAt = (s) => Math.max(0, ...(s.History ?? []).filter((e) => e.Kind === "version").map((e) => Date.parse(e.First)));
const orders = {
  attention: (a, b) => rank[stateOf(a).level] - rank[stateOf(b).level] || Boolean(b.Declared) - Boolean(a.Declared) || byName(a, b),
  name: byName,
  next: (a, b) => (Date.parse(a.NextRefresh) || Infinity) - (Date.parse(b.NextRefresh) || Infinity) || byName(a, b),
  changed: (a, b) => changedAt(b) - changedAt(a) || byName(a, b),
};

function matches(s, words) {
  const text = [s.Secret, s.VersionId, ...(s.VersionStages ?? []), stateOf(s).word, s.Error, s.Cause, s.AskedBy].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** drawSecrets draws the secrets that the filter leaves, in the order that was chosen. */
export function drawSecrets() {
  if (!status) return;
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const asked = words.length ? 0 : status.Secrets.filter(onlyAsked).length;
  const found = status.Secrets.filter((s) => (words.length ? matches(s, words) : !onlyAsked(s))).sort(orders[byId("order").value]);
  const all = status.Secrets.length;
  setText(byId("secrets-count"), found.length === all ? `${all.toLocaleString("en")}` : `${found.length.toLocaleString("en")} of ${all.toLocaleString("en")}`);
  const note = byId("secrets-note");
  const more = found.length - maxRows;
  const folded = asked ? `${plural(asked, "name was", "names were")} asked for and ${asked === 1 ? "is" : "are"} not there: filter for “refused” to see ${asked === 1 ? "it" : "them"}. ` : "";
  setText(note, folded + (all === 0 ? "None are held yet, and none are declared." : found.length === 0 && words.length ? "No secret matches the filter." :
    more > 0 ? `The first ${maxRows} are shown; filter to see the other ${more.toLocaleString("en")}.` : ""));
  note.hidden = note.textContent === "";
  byId("secrets-table").hidden = found.length === 0;
  setText(byId("axis-from"), moment(status.StartedAt));
  byId("axis-from").dateTime = status.StartedAt;
  const rows = found.slice(0, maxRows).flatMap((s) => (open.has(s.Secret) ? [{ s }, { s, details: true }] : [{ s }]));
  keyed(byId("secrets-rows"), rows, (r) => (r.details ? "+" : "") + r.s.Secret, (r) => (r.details ? makeDetails() : makeSecret(r.s)),
    (node, r) => (r.details ? updateDetails(node, r.s) : updateSecret(node, r.s)));
}

const cell = (name, ...children) => el("td", { role: "cell", class: name }, ...children);

function makeSecret(s) {
  const button = el("button", { type: "button", class: "name", "aria-expanded": "false" },
    el("span", { class: "turn", "aria-hidden": "true" }, "›"), el("span", { class: "text" }, ...breakable(spelled(s))));
  button.addEventListener("click", () => toggle(s.Secret));
  return el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", class: "secret" }, button, el("span", { class: "state" })),
    cell("held"), cell("confirmed"), cell("next"), cell("since", el("div", { class: "strip", role: "img" })));
}

/** spelled returns a secret as people write it: the current version goes without saying. */
const spelled = (s) => (s.Secret === `${s.SecretName}:ACSCurrent` ? s.SecretName : s.Secret);

/** breakable lets a long name break after its separators, and a code between its words. */
function breakable(text) {
  return text.split(/(?<=[/:_.-])|(?<=[a-z])(?=[A-Z])/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
}

const badge = (state) => [el("span", { class: "glyph", "aria-hidden": "true" }, glyphs[state.level]), state.word];

function updateSecret(row, s) {
  const [head, held, confirmed, next, since] = row.children;
  head.firstChild.setAttribute("aria-expanded", String(open.has(s.Secret)));
  const state = stateOf(s);
  setClass(head.lastChild, `state ${state.level}`);
  rebuild(head.lastChild, state, badge);
  rebuild(held, [s.VersionId, s.VersionStages], ([id, labels]) => (id ? [
    el("span", { class: "id" }, id),
    el("span", { class: "labels" }, ...(labels ?? []).flatMap((l) => [el("span", { class: l === "ACSCurrent" ? "flag current" : "flag" }, l), " "])),
  ] : [el("span", { class: "quiet" }, "none")]));
  if (held.dataset.version !== undefined && held.dataset.version !== (s.VersionId ?? "")) {
    held.classList.remove("changed");
    void held.offsetWidth; // so that the animation begins anew
    held.classList.add("changed");
  }
  held.dataset.version = s.VersionId ?? "";
  rebuild(confirmed, s.ConfirmedAt, (at) => [el("span", { class: "on-narrow" }, "confirmed "), when(at, "ago")]);
  rebuild(next, [s.NextRefresh, s.Failures, why(s), s.ServedUntil], ([at, failures, error, until]) => [
    el("span", { class: "on-narrow" }, "next "), when(at, "in"),
    error && el("span", { class: "error" }, failures > 1 ? `${failures} times ` : "", ...breakable(error)),
    until && el("span", { class: "error" }, "served until ", moment(until)),
  ]);
  strip(since.firstChild, s, status.StartedAt);
}

function toggle(name) {
  if (open.has(name)) {
    open.delete(name);
  } else {
    open.add(name);
    if (open.size > maxOpen) open.delete(open.values().next().value);
  }
  drawSecrets();
}

function makeDetails() {
  return el("tr", { role: "row", class: "details" }, el("td", { role: "cell", colspan: "5" },
    el("div", { class: "versions", role: "region", "aria-label": "Versions and labels, oldest first", tabindex: "0", hidden: true }),
    el("div", { class: "beside" }, el("dl", { class: "facts" }), el("div", { class: "story" }, el("h3", {}, "History"), el("ul", {})))));
}

function updateDetails(row, s) {
  const [picture, beside] = row.firstChild.children;
  const [facts, story_] = beside.children;
  picture.hidden = status.Upstream.Kind !== "local";
  if (!picture.hidden) {
    // When the version or a label of this one has moved, and now and then for the others.
    const mark = JSON.stringify([s.VersionId, s.VersionStages, Math.floor(shown / 5)]);
    if (picture.dataset.mark !== mark) {
      picture.dataset.mark = mark;
      versions(picture, s.SecretName);
    }
  }
  rebuild(facts, [s.Declared, s.FreshUntil, s.ServedUntil, s.ConfirmedAt, s.NextRefresh, s.Subscribers, s.AskedBy, s.AskedAt, s.Error, s.Cause, s.ErrorAt, s.Failures], () => [
    fact("Declared", s.Declared ? "yes: fetched at start, kept, part of readiness" : "no: held because it was asked for"),
    s.FreshUntil && fact("Fresh until", el("span", {}, moment(s.FreshUntil), ", ", when(s.FreshUntil, "in"))),
    s.ServedUntil && fact("Served until", el("span", {}, moment(s.ServedUntil), ", ", when(s.ServedUntil, "in"), ", unless the upstream answers before")),
    s.Subscribers > 0 && fact("Waiting for changes", plural(s.Subscribers, "file, client or application", "files, clients and applications")),
    (s.AskedAt || s.AskedBy) && fact("Asked for last", el("span", {}, s.AskedBy ? `by ${s.AskedBy} ` : "", when(s.AskedAt, "ago"))),
    s.Error && fact("Last error", el("span", {}, s.Cause ? `${s.Cause} (${s.Error})` : s.Error, " ", when(s.ErrorAt, "ago"), s.Failures > 1 ? `, ${s.Failures} in a row` : "")),
  ]);
  story_.hidden = !s.History?.length;
  rebuild(story_.lastChild, [s.History, s.HistoryDropped], () => story(s));
}

const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));

// ---------------------------------------------------------------- the rest

function fileState(f) {
  if (f.State === "failed") return { level: "bad", word: "failed" };
  if (f.State === "pending") return { level: "warn", word: "pending" };
  if (f.State === "removed") return { level: "warn", word: "removed" };
  return { level: "ok", word: "current" };
}

function hookState(f) {
  if (f.HookFailed) return { level: "bad", word: "failed" };
  if (f.HookOwed) return { level: "warn", word: "owed" };
  return null;
}

function drawFiles() {
  byId("files").hidden = status.Files.length === 0;
  setText(byId("files-count"), String(status.Files.length));
  keyed(byId("files-rows"), status.Files, (f) => f.Path, (f) => el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", class: "secret" }, el("span", { class: "text" }, ...breakable(f.Path)), el("span", { class: "state" })),
    cell("held"), cell("confirmed"), cell("next")),
  (row, f) => {
    const [head, made, changed, hook] = row.children;
    const state = fileState(f);
    setClass(head.lastChild, `state ${state.level}`);
    rebuild(head.lastChild, state, badge);
    rebuild(made, [f.Versions, f.Files], () => [
      ...(f.Versions ?? []).map((v) => el("span", { class: "part" }, ...breakable(v.SecretName), " ", el("span", { class: "id" }, v.VersionId))),
      f.Files ? el("span", { class: "quiet" }, `a set of ${f.Files.length}`) : null]);
    rebuild(changed, [f.ChangedAt, f.NextTry, f.Error, f.Failures], () => [
      el("span", { class: "on-narrow" }, "changed "),
      f.ChangedAt ? when(f.ChangedAt, "ago") : el("span", { class: "quiet" }, "not by this run"),
      f.Error ? el("span", { class: "error" }, ` ${f.Error}`) : null,
      f.NextTry ? el("span", {}, " tried again ", when(f.NextTry, "in")) : null]);
    const h = hookState(f);
    setClass(hook, h ? `next state ${h.level}` : "next quiet");
    rebuild(hook, [h, f.HookError], () => (h ? [el("span", { class: "on-narrow" }, "hook "), ...badge(h), f.HookError ? el("span", { class: "error" }, ` ${f.HookError}`) : null] : ["–"]));
  });
}

function drawFacts() {
  const up = status.Upstream, cloud = up.Alibaba;
  rebuild(byId("upstream"), up, () => (cloud ? [
    fact("Kind", "Alibaba Cloud KMS"),
    ...cloud.Endpoints.map((e) => fact(e.Name, el("span", {}, e.State, e.Name === cloud.Endpoint ? ", in use" : "",
      e.Failures ? `, ${plural(e.Failures, "failure")}: ${e.LastCause ?? e.LastFailure}` : "", e.RestsUntil ? el("span", {}, ", tried again ", when(e.RestsUntil, "in")) : ""))),
    fact("Credentials", el("span", {}, cloud.Credential.Source ?? cloud.Credential.Type,
      cloud.Credential.Expires ? el("span", {}, ", end ", when(cloud.Credential.Expires, "in")) : "",
      cloud.Credential.Error ? el("span", { class: "error" }, ` ${cloud.Credential.Error}`) : "")),
    fact("Breaker", el("span", {}, cloud.Breaker.State, cloud.Breaker.Until ? el("span", {}, ", probes ", when(cloud.Breaker.Until, "in")) : "")),
    fact("Budget", `${Math.round(cloud.Budget.CallsPerSecond)} of ${Math.round(cloud.Budget.MaxCallsPerSecond)} calls a second`),
    fact("Under way", plural(cloud.InFlight, "call")),
  ] : [
    fact("Kind", "built-in backend"),
    fact("Reads", up.Local.Reads.toLocaleString("en")),
    fact("Writes", up.Local.Writes.toLocaleString("en")),
    fact("Waiting writes", `${up.Local.WritesQueued} of at most ${up.Local.WritesQueueLimit}`),
  ]));

  const c = status.Child;
  byId("child").hidden = !c;
  if (c) {
    rebuild(byId("child-facts"), c, () => [
      fact("Command", c.Command),
      fact("State", el("span", {}, c.State, c.PID ? `, process ${c.PID}` : "", c.Outdated ? ", with values that are not the current ones" : "")),
      c.StartedAt && fact("Started", when(c.StartedAt, "ago")),
      fact("Because of changes", `${plural(c.Restarts, "restart")}, ${plural(c.Signals, "signal")}`),
      c.Error && fact("Last error", el("span", { class: c.Failing ? "error" : "" }, c.Error, " ", when(c.ErrorAt, "ago"))),
      c.State === "ended" && fact("Exit code", String(c.ExitCode ?? 0)),
    ]);
  }

  const rotations = status.Rotations ?? [];
  byId("rotations").hidden = rotations.length === 0;
  keyed(byId("rotations-rows"), rotations, (x) => x.SecretName, (x) => el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", class: "secret" }, ...breakable(x.SecretName)), cell("held"), cell("confirmed"), cell("next")),
  (row, x) => {
    const [, last, took, next] = row.children;
    rebuild(last, x.LastRotation, (at) => [el("span", { class: "on-narrow" }, "last "), at ? when(at, "ago") : el("span", { class: "quiet" }, "not yet")]);
    rebuild(took, x.TookSeconds ?? 0, (s) => [el("span", { class: "on-narrow" }, "took "), s ? `${s.toPrecision(2)} s` : "–"]);
    rebuild(next, [x.State, x.Step, x.NextRotation, x.Error, x.Attempts], ([state, step, at, error, n]) => [
      el("span", { class: "on-narrow" }, "next "),
      error ? el("span", { class: "error" }, state === "failed" ? `failed at step ${step}` : `step ${step} fails, attempt ${n}`)
        : step ? `in step ${step}` : at ? when(at, "in") : el("span", { class: "quiet" }, "by hand")]);
  });

  const callers = status.Callers ?? [];
  byId("callers").hidden = callers.length === 0;
  keyed(byId("callers-rows"), callers, (x) => x.Name, (x) => el("tr", { role: "row" },
    el("th", { role: "rowheader", scope: "row", class: "secret" }, x.Name), cell("held"), cell("confirmed"), cell("next")),
  (row, x) => {
    const [, seen, lookups, refused] = row.children;
    rebuild(seen, [x.LastSeen, x.ShutOut], ([at, out]) => out ? [el("span", { class: "error" }, "shut out")]
      : [el("span", { class: "on-narrow" }, "seen "), at ? when(at, "ago") : el("span", { class: "quiet" }, "not yet")]);
    rebuild(lookups, x.Lookups ?? 0, (n) => [el("span", { class: "on-narrow" }, "lookups "), n.toLocaleString("en")]);
    rebuild(refused, x.Refusals ?? 0, (n) => [el("span", { class: "on-narrow" }, "refused "), n.toLocaleString("en")]);
  });

  const r = status.Reload;
  rebuild(byId("agent"), [status.Version, status.StartedAt, status.Listeners, status.PID, status.Config, r], () => [
    fact("Version", status.Version),
    fact("Runs", el("span", {}, when(status.StartedAt, "for"), `, since ${moment(status.StartedAt)}`)),
    status.PID && fact("Process", `${status.PID} on ${status.Host}`),
    status.Config && fact("Configuration", el("span", { class: "id" }, ...breakable(status.Config))),
    fact("Reloaded", r ? el("span", { class: r.Failed ? "error" : "" }, r.Failed ? "in vain " : "", when(r.At, "ago"), r.Error ? ` ${r.Error}` : "") : "not since the start"),
    ...status.Listeners.map((l) => fact({ endpoint: "Listens", systemd: "Credentials", metrics: "Metrics" }[l.Serves] ?? "KMS API",
      el("span", {}, el("span", { class: "id" }, ...breakable(l.Address)), l.TLS ? ", TLS" : "", l.Signed ? ", signed" : "", l.Token ? ", token" : "",
        l.CertificateExpires ? el("span", {}, ", certificate ends ", when(l.CertificateExpires, "in")) : ""))),
  ]);
}

/** outdated shows, with a headline that says why, that what is drawn need not be true any more. */
export function outdated(why) {
  document.body.classList.toggle("outdated", Boolean(why));
  if (why) {
    setClass(byId("sign"), "sign bad");
    setText(byId("sign"), "?");
    setText(byId("headline"), why);
    if (status) setText(byId("subline"), "Below is what the agent said last.");
    document.title = "(?) secretagent";
  }
}
