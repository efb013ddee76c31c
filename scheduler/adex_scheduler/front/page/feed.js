// The feed: keeps one connection while the page can be seen, and hands on each snapshot.

import { complaintOf, dataOf } from "./events.js";

const BACK_OFF_MS = [500, 1000, 2000, 5000];
const KEY = "adex-admin-key";

export const adminKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** Headers with the admin key, where one was given. */
export function credentials() {
  const key = adminKey.get();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Calls told(snapshot), and lost(reason, forbidden) whenever there is none to be had. */
export function watch(told, lost) {
  let attempt = 0;
  let abort = null;
  let timer = 0;

  async function connect() {
    abort = new AbortController();
    const mine = abort;
    let reason = "the feed ended";
    try {
      const response = await fetch("ui/feed", { headers: credentials(), signal: mine.signal });
      if (!response.ok) {
        const forbidden = response.status === 401 || response.status === 403;
        lost(await complaintOf(response), forbidden);
        if (!forbidden) again();
        return;
      }
      for await (const data of dataOf(response)) {
        attempt = 0;
        told(JSON.parse(data));
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      reason = "the server does not answer";
      if (!(error instanceof TypeError)) console.error(error);
    }
    lost(reason, false);
    again();
  }

  function again() {
    const wait = BACK_OFF_MS[Math.min(attempt++, BACK_OFF_MS.length - 1)];
    timer = setTimeout(connect, wait);
  }

  function restart() {
    clearTimeout(timer);
    abort?.abort();
    attempt = 0;
    if (!document.hidden) connect();
  }

  // A page that nobody sees watches nothing.
  document.addEventListener("visibilitychange", restart);
  restart();
  return restart;
}
