// What pages can do when scripts run: fold code on phones, filter cards and rows, sort tables, change the theme.
// Without it every page is whole: lists are complete, code is open, tables are in the order of the catalog.

const phone = matchMedia("(max-width: 700px)")
if (phone.matches) for (const code of document.querySelectorAll("details.code, details.code-fold, .side > details")) code.open = false

for (const form of document.querySelectorAll("form.al-filter")) {
  const items = [...document.getElementById(form.dataset.filters).children], count = form.querySelector("output")
  const shows = (item, { text, chapter, verdict }) =>
    text.toLowerCase().split(/\s+/).every(word => item.dataset.text.includes(word)) &&
    (!chapter || item.dataset.chapter === chapter) && (!verdict || item.dataset.verdicts.split("|").includes(verdict))
  const filter = () => {
    const wanted = Object.fromEntries(new FormData(form))
    for (const item of items) item.hidden = !shows(item, wanted)
    count.textContent = `${items.filter(item => !item.hidden).length} of ${items.length}`
  }
  for (const kind of ["input", "change"]) form.addEventListener(kind, filter)
  form.addEventListener("submit", event => event.preventDefault())
  form.hidden = false
  filter()
}

for (const table of document.querySelectorAll("table.al-sortable")) {
  const value = (row, k) => { const cell = row.cells[k]; return cell.dataset.value ?? cell.textContent.trim() }
  const compare = (a, b) => a === "" ? 1 : b === "" ? -1 : isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b
  table.tHead.rows[0].querySelectorAll("th").forEach((head, k) => {
    const button = document.createElement("button")
    button.append(...head.childNodes)
    head.append(button)
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", rows = [...table.tBodies[0].rows]
      rows.sort((a, b) => compare(value(a, k), value(b, k)) * (down && value(a, k) !== "" && value(b, k) !== "" ? -1 : 1))
      table.tBodies[0].append(...rows)
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort")
      head.setAttribute("aria-sort", down ? "descending" : "ascending")
    })
  })
}

const toggle = document.querySelector("button.theme")
if (toggle) {
  toggle.hidden = false
  toggle.addEventListener("click", () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches
    root.dataset.theme = dark ? "light" : "dark"
    try { localStorage.setItem("theme", root.dataset.theme) } catch {}
  })
}
