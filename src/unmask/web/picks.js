// A table to choose from: the filter and the ticks answer at once; the server is told which rows are chosen, each in the place
// that gives it its colour. Rows that are chosen stay in sight, whatever is typed.
const sought = element.querySelector("input"), cells = element.querySelector(".cells"), count = element.querySelector(".count");
let told = null, places = [];

const rows = () => [...cells.querySelectorAll("tr[data-name]")];

function mark() {
  for (const row of rows()) {
    const place = places.indexOf(row.dataset.name), tick = row.querySelector("input");
    tick.checked = place >= 0;
    row.classList.toggle("chosen", place >= 0);
    row.style.setProperty("--chip", place >= 0 ? told.colours[place] : "transparent");
  }
}

function sieve() {
  const parts = sought.value.toLowerCase().split(/\s+/).filter(Boolean);
  let seen = 0;
  for (const row of rows()) {
    const says = row.textContent.toLowerCase(), found = parts.every((part) => says.includes(part));
    seen += found;
    row.hidden = !found && !row.classList.contains("chosen");
  }
  const all = rows().length, chosen = places.filter(Boolean).length;
  count.textContent = `${parts.length ? `${seen} of ${all}` : all} ${all === 1 ? "run" : "runs"}, ${chosen} chosen` +
    (chosen >= told.colours.length ? `, which is the most` : "");
  sought.hidden = all < 2;
}

function take() {
  if (!props.value) return;
  told = JSON.parse(props.value);
  if (told.places) places = told.places;
  const at = cells.contains(document.activeElement) ? document.activeElement.closest("tr")?.dataset.name : null;
  cells.innerHTML = told.table;
  mark();
  sieve();
  if (at) rows().find((row) => row.dataset.name === at)?.querySelector("input").focus();
}

cells.addEventListener("change", (event) => {
  const name = event.target.closest("tr").dataset.name, place = places.indexOf(name);
  if (place >= 0) places[place] = null;
  else {
    const free = [...told.colours.keys()].find((i) => !places[i]);
    if (free !== undefined) places[free] = name;
  }
  mark();
  sieve();
  trigger("chosen", { places: [...told.colours.keys()].map((i) => places[i] ?? null) });
});
sought.addEventListener("input", sieve);
watch("value", take);
take();
