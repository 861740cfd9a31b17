// The host of the book's widgets: what a notebook's front end is to anywidget, without a kernel. It reads the state that the page
// holds and calls each module's `render`; a module comes from a blob, since a page opened from disk may not load another file.
addEventListener("DOMContentLoaded", async () => {
  const saved = document.querySelector("script[type='application/vnd.jupyter.widget-state+json']")
  if (!saved) return
  const widgets = JSON.parse(saved.textContent).state, styles = new Set()
  for (const view of document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']")) {
    const {state} = widgets[JSON.parse(view.textContent).model_id], heard = {}
    const model = {
      get: name => (name == "_book" ? true : state[name]),
      set(name, value) {
        if (state[name] === value) return
        state[name] = value
        for (const listener of heard[`change:${name}`] ?? []) listener()
      },
      on: (event, listener) => (heard[event] ??= []).push(listener),
      save_changes() {},
    }
    if (!styles.has(state._css)) document.head.appendChild(document.createElement("style")).textContent = state._css
    styles.add(state._css)
    const place = document.createElement("div"), url = URL.createObjectURL(new Blob([state._esm], {type: "text/javascript"}))
    view.after(place)
    const {default: widget} = await import(url)
    URL.revokeObjectURL(url)
    await widget.render({model, el: place})
    place.dataset.ready = true
  }
})

// The scoreboard's menus: what does not fit them is hidden, and a claim with nothing left, too.
addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector(".board-filter")
  if (!form) return
  form.hidden = false
  const board = form.closest(".board"), claims = [...board.querySelectorAll(".claim")]
  const fits = (chosen, values) => !chosen || values.includes(chosen)
  form.addEventListener("input", () => {
    const {verdict, optimizer, setting} = Object.fromEntries(new FormData(form))
    let shown = 0
    for (const claim of claims) {
      const lines = [...claim.querySelectorAll(".statement")]
      for (const line of lines)
        line.hidden = !(fits(verdict, [line.dataset.verdict]) && fits(optimizer, line.dataset.optimizers.split(" ")) && fits(setting, [claim.dataset.setting]))
      claim.hidden = lines.every(line => line.hidden)
      shown += lines.filter(line => !line.hidden).length
    }
    for (const title of board.querySelectorAll(".setting")) {
      let next = title.nextElementSibling
      while (next?.hidden) next = next.nextElementSibling
      title.hidden = !next?.matches(".claim")
    }
    form.querySelector("output").textContent = `${shown} statement${shown == 1 ? "" : "s"}`
  })
})

// A folded cell's or a button's words are its name: the theme's labels say the same of all of them
addEventListener("DOMContentLoaded", () => {
  for (const named of document.querySelectorAll("details > summary[aria-label], .search-button-field[aria-label]")) named.removeAttribute("aria-label")
})

// What sets a page up, its parameters, the profile's and its imports, in one fold
addEventListener("DOMContentLoaded", () => {
  const [first, ...others] = [...document.querySelectorAll("details.hide.above-input")].filter(
    fold => /^(Parameters of|Imports$)/.test(fold.querySelector("summary p").textContent) && !fold.parentElement.querySelector(".cell_output"))
  for (const fold of others) {
    first.append(...fold.querySelectorAll(".cell_input"))
    fold.parentElement.remove()
  }
})

// On a phone a table of words that is wider than the page stands value by value, each after its column's name.
addEventListener("DOMContentLoaded", () => {
  const tables = document.querySelectorAll("main table.table")
  for (const table of tables) {
    const names = [...table.querySelectorAll("thead th")].map(({textContent: name}) => (name.endsWith("?") ? name : `${name}:`))
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, i) => (cell.dataset.column = names[i]))
  }
  const stack = () => {
    for (const table of tables) {
      table.classList.remove("stacked")
      table.classList.toggle("stacked", innerWidth < 600 && table.scrollWidth > table.parentElement.clientWidth)
    }
  }
  addEventListener("resize", stack)
  stack()
})

// Search shows a line of each page that it finds; but a page opened from disk may not read its neighbours.
if (location.protocol == "file:" && typeof DOCUMENTATION_OPTIONS == "object")
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false
