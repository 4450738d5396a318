"use strict";
(() => {
  const status = document.querySelector("[role=status]"), follow = document.querySelector("input");
  const main = document.querySelector("main"), root = document.documentElement;
  const SETTLING = 600;  // milliseconds that the charts of a new page have to take their places before it is shown
  let latest = -1, shown = -1, next = null;

  // what stands at the top of the window: the last element with a name that begins above it
  const place = (page) => {
    const named = [...page.querySelectorAll("body [id]")].filter((one) => one.getClientRects().length);
    const above = named.filter((one) => one.getBoundingClientRect().top <= 1).pop();
    return { id: above?.id, top: above?.getBoundingClientRect().top, y: page.defaultView.scrollY };
  };
  const move = (page, { id, top, y }) => {
    const one = id && page.getElementById(id);
    if (one) page.defaultView.scrollBy(0, one.getBoundingClientRect().top - top);
    else page.defaultView.scrollTo(0, y);
  };
  const same = (old, page) => {  // what a reader chose stays: theme, opened parts, the words of a filter
    if (old.documentElement.dataset.theme) page.documentElement.dataset.theme = old.documentElement.dataset.theme;
    const title = (one) => one.querySelector("summary")?.textContent;
    const open = new Set([...old.querySelectorAll("details[open]")].map(title));
    for (const one of page.querySelectorAll("details")) if (open.has(title(one))) one.open = true;
    for (const one of old.querySelectorAll("form [name]")) {
      const fresh = page.querySelector(`form [name="${CSS.escape(one.name)}"]`);
      if (fresh && fresh.value !== one.value) {
        fresh.value = one.value;
        fresh.dispatchEvent(new Event("input", { bubbles: true }));
      }
    }
  };

  const update = () => {
    if (next || shown === latest || (shown >= 0 && !follow.checked)) return;
    const version = latest, old = main.querySelector("iframe");
    next = document.createElement("iframe");
    next.title = "Report";
    next.className = "next";
    next.src = `page?version=${version}`;
    next.addEventListener("load", () => {
      const fresh = next, page = fresh.contentDocument;
      const settle = (until) => {
        if (old) move(page, place(old.contentDocument));
        if (old && performance.now() < until) { setTimeout(settle, 60, until); return; }
        fresh.className = "";
        old?.remove();
        [next, shown] = [null, version];
        update();
      };
      if (old) same(old.contentDocument, page);
      settle(performance.now() + SETTLING);
    });
    main.append(next);
  };

  const events = new EventSource("events");
  events.addEventListener("changed", (event) => {
    const { version, state, text } = JSON.parse(event.data);
    latest = version;
    status.textContent = text;
    status.dataset.state = state;
    document.title = `${state}: fedquilt watch`;
    update();
  });
  events.addEventListener("error", () => {
    if (status.dataset.state === "finished") { events.close(); return; }
    status.textContent = "The connection is lost; fedquilt watch may have ended. What is shown is the last report.";
    status.dataset.state = "lost";
  });
  follow.addEventListener("change", update);
  setInterval(() => {  // the bar has the theme that was chosen in the report
    const theme = main.querySelector("iframe")?.contentDocument?.documentElement.dataset.theme;
    if (theme && root.dataset.theme !== theme) root.dataset.theme = theme;
  }, 500);
})();
