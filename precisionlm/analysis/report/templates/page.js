// Light or dark: what the reader's system says, until the button is pressed.
function themed(button) {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const tell = () => { button.textContent = now() === "dark" ? "light" : "dark"; };
  button.addEventListener("click", () => { root.dataset.theme = now() === "dark" ? "light" : "dark"; tell(); });
  dark.addEventListener("change", tell);
  button.hidden = false;
  tell();
}

const fits = JSON.parse(document.getElementById("data").textContent);
themed(document.getElementById("theme"));
document.querySelectorAll("[data-fit]").forEach((host) => plots(host, fits[host.dataset.fit]));
document.querySelectorAll("table.data").forEach(handy);
