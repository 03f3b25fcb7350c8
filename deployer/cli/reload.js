// Reloads the page once another release is live than the one it is of. Served with its two arguments after it:
// where the server of `deployer watch --browser` tells of releases, and which was live when this script was asked for.
(function (events, live) {
  "use strict";
  if (window.deployerReload) return; // a second tag, or one in a fragment that was put into the page
  window.deployerReload = true;
  const PAUSE_MS = 2000;
  const CLOSED = 2;
  const tag = document.currentScript;
  let mine = (tag && tag.dataset.release) || live;
  let source = null;

  // What a reload was made for outlives it: a page that comes back old (from a cache, or from a worker that is
  // replaced next) is not reloaded again and again. By path: pages in frames share the storage of their tab.
  function told(release) {
    const key = "deployer-reload:" + location.pathname;
    mine = mine || release;
    if (release === mine) {
      sessionStorage.removeItem(key);
    } else if (sessionStorage.getItem(key) !== release) {
      sessionStorage.setItem(key, release);
      location.reload();
    }
  }

  // Pages that nobody sees listen once they are shown, and learn then what is live: a browser has six
  // connections to a server, for all tabs together.
  function listen() {
    if (document.hidden) {
      if (source) source.close();
      source = null;
    } else if (!source || source.readyState === CLOSED) {
      source = new EventSource(events);
      source.onmessage = (event) => told(event.data);
      source.onerror = (event) => {
        if (event.target.readyState === CLOSED) setTimeout(listen, PAUSE_MS); // else it connects again by itself
      };
    }
  }

  document.addEventListener("visibilitychange", listen);
  listen();
})
