/** The views as tabs: the address says which, arrow keys go from one to the next. */

/** @param {Record<string, () => void>} shown what to call when a view is shown, by its name */
export function startTabs(shown) {
  const names = Object.keys(shown);
  const tab = (name) => document.getElementById(`tab-${name}`);

  function show() {
    const wanted = location.hash.slice(1);
    const current = document.querySelector('[role="tab"][aria-selected="true"]').id.slice(4);
    const name = names.includes(wanted) ? wanted : current;
    for (const other of names) {
      tab(other).setAttribute("aria-selected", String(other === name));
      tab(other).tabIndex = other === name ? 0 : -1;
      document.getElementById(`view-${other}`).hidden = other !== name;
    }
    document.title = `${tab(name).textContent} – sarathi-jax`;
    shown[name]();
  }

  function go(name) {
    history.replaceState(null, "", `#${name}`);
    show();
    tab(name).focus();
  }

  names.forEach((name, position) => {
    tab(name).addEventListener("click", () => go(name));
    tab(name).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) go(names[(position + step + names.length) % names.length]);
    });
  });
  addEventListener("hashchange", show);
  show();
}
