// A figure with controls: one of its `frames`, drawn in advance, or in a live notebook what the kernel answers in `svg`.
function render({model, el}) {
  const {root, names} = start(model, el), figure = node("div", {class: "nc-figure", role: "img", "aria-live": "polite"})
  const show = () => {
    const frames = model.get("frames"), places = model.get("controls").map(({name, options}) => options?.indexOf(model.get(name)))
    const at = model.get("controls").reduce((at, {options}, i) => at * (options?.length ?? 1) + (places[i] ?? 0), 0)
    figure.innerHTML = frames.length ? frames[at] : model.get("svg")
    figure.setAttribute("aria-label", `Figure: ${names.map(name => `${name} ${model.get(name)}`).join(", ")}`)
  }
  address(model, "figure", names, root)
  root.append(figure)
  for (const name of [...names, "svg"]) model.on(`change:${name}`, show)
  show()
}

export default {render}
