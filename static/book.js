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
