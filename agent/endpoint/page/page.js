// Asks the agent for its status again and again, and says so when it does not answer.

import { byId, read, setText } from "./dom.js";
import { draw, drawSecrets, outdated } from "./view.js";
import { moment, now, setClock, span, tick } from "./time.js";

const calm = 2000; // between two answers
const longest = 30000; // between two questions that fail
const unseen = 60000; // while nobody looks
const patience = 8000; // of one question

let timer = 0;
let asking = false;
let failures = 0; // in a row
let answered = 0; // when the last answer came, on the agent's clock
let nextAt = 0; // of the next question, on this clock
let signedOut = false;

async function ask() {
  clearTimeout(timer);
  if (asking || signedOut) return;
  asking = true;
  const asked = Date.now();
  let wait = calm;
  try {
    const answer = await fetch("/status", {
      headers: { Accept: "application/json" }, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(patience),
    });
    if (answer.status === 403) {
      signedOut = true;
      outdated("You are signed out");
    } else if (!answer.ok) {
      throw new Error(`status ${answer.status}`);
    } else {
      const status = read(await answer.text());
      setClock(status.Time, asked, Date.now());
      failures = 0;
      answered = now();
      outdated();
      draw(status);
      wait = Math.min(longest, Math.max(calm, 20 * (Date.now() - asked))); // an agent that has much to tell is asked less
    }
  } catch {
    failures++;
    outdated("The agent does not answer");
    wait = Math.min(longest, calm * 2 ** (failures - 1));
  }
  asking = false;
  if (document.hidden) wait = Math.max(wait, unseen);
  nextAt = Date.now() + wait;
  if (!signedOut) timer = setTimeout(ask, wait);
  drawBanner();
}

function drawBanner() {
  const banner = byId("banner");
  const bad = signedOut || failures > 0;
  document.body.classList.toggle("live", !bad);
  byId("banner-retry").hidden = signedOut;
  byId("banner-sign-in").hidden = !signedOut;
  if (signedOut) {
    setText(byId("banner-title"), "Signed out.");
    setText(byId("banner-text"), "The session has ended, its token is no longer valid, or the agent was started again.");
    setText(byId("live-text"), "signed out");
  } else if (bad) {
    setText(byId("banner-title"), "No answer.");
    setText(byId("banner-text"), answered ? `What you see is from ${moment(answered)}. The page goes on asking and recovers by itself.` : "The page goes on asking.");
    setText(byId("live-text"), asking ? "asking again" : `asking again in ${span(nextAt - Date.now())}`);
  } else {
    setText(byId("live-text"), answered ? `live, ${now() - answered < 3500 ? "now" : `${span(now() - answered)} old`}` : "connecting");
  }
  if (banner.hidden === bad) banner.hidden = !bad;
}

byId("filter").addEventListener("input", drawSecrets);
byId("order").addEventListener("change", drawSecrets);
byId("banner-retry").addEventListener("click", ask);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});
addEventListener("online", ask);
setInterval(() => {
  if (document.hidden) return;
  tick();
  drawBanner();
}, 1000);
ask();
