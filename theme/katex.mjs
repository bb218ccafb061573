// Formulas in (JSON: [{tex, display}, ...]), HTML out (JSON); one that KaTeX refuses ends the build, and is named.
import { createRequire } from "node:module"
const katex = createRequire(import.meta.url)("katex")
let text = ""
for await (const chunk of process.stdin) text += chunk
const html = JSON.parse(text).map(({ tex, display }) => {
  try { return katex.renderToString(tex, { displayMode: display, strict: "ignore" }).replace('class="katex-display"', 'class="katex-display" tabindex="0"') }
  catch (error) { console.error(`${error.message}\nin: ${tex}`); process.exit(1) }
})
process.stdout.write(JSON.stringify(html))
