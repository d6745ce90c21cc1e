/** Light or dark: as the system is, until the button says otherwise. */
const KEPT = "sarathi-theme";

export function startTheme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");

  function apply() {
    const chosen = localStorage.getItem(KEPT) ?? (system.matches ? "dark" : "light");
    root.dataset.theme = chosen;
    button.setAttribute("aria-label", chosen === "dark" ? "Use light colours" : "Use dark colours");
    document.dispatchEvent(new CustomEvent("theme"));
  }

  button.addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    if (next === (system.matches ? "dark" : "light")) localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, next);
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}
