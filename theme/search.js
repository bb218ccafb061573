// The search page: pagefind's index, read from static files.
const query = new URLSearchParams(location.search).get("q")?.trim() ?? ""
const field = document.querySelector(".al-search input"), found = document.querySelector("#found")
field.value = query

async function search() {
  const pagefind = await import("../pagefind/pagefind.js")
  const { results } = await pagefind.search(query)
  found.textContent = `${results.length} page${results.length === 1 ? "" : "s"} for “${query}”`
  for (const page of await Promise.all(results.slice(0, 30).map(r => r.data()))) {
    const item = document.createElement("li"), link = document.createElement("a"), text = document.createElement("p")
    link.href = page.url
    link.textContent = page.meta.title
    text.innerHTML = page.excerpt
    item.append(link, text)
    document.querySelector("#results").append(item)
  }
}

if (query) search().catch(() => { found.textContent = location.protocol === "file:" ? "The search needs a server: amortlit docs --serve shows the site with one." : "The index could not be read." })
