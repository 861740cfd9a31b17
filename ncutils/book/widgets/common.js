// What the book's widgets share: controls bound to their model, charts in SVG, the view in the page's address.

// An element, of HTML or (names in SVG) of a drawing, with attributes and children
const SVG = new Set(["svg", "g", "path", "line", "circle", "ellipse", "text"])
function node(tag, attributes = {}, ...children) {
  const made = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  made.append(...children)
  return made
}

// Values by name into a model, here and where else it lives
function save(model, values) {
  for (const [name, value] of Object.entries(values)) model.set(name, value)
  model.save_changes()
}

const short = (v, digits = 3) =>
  v === 0 || (Math.abs(v) >= 1e-3 && Math.abs(v) < 1e6) ? String(+v.toPrecision(digits)) : v.toExponential(digits - 1).replace(/\.?0*e\+?/, "e")

// A slider's positions and the values that they stand for: logarithms, of 1 - value for a momentum.
const SCALES = {
  log: {to: Math.log10, from: x => +(10 ** x).toPrecision(3), step: 0.01},
  count: {to: Math.log10, from: x => Math.round(+(10 ** x).toPrecision(2)), step: 0.02},
  share: {to: v => -Math.log10(1 - v), from: x => +(1 - 10 ** -x).toFixed(4), step: 0.01},
  whole: {to: v => v, from: x => x, step: 1},
}

// A labelled control of one value of the model: a menu of words, a field for words, a slider over `options`, or a slider beside a field
// that takes any value from min to max. With `zero` the slider's left end stands for 0.
function control(model, {name, label, kind, min, max, options, titles, zero}, id) {
  const box = node("div", {class: "nc-control"}, node("label", {for: id}, label))
  const bind = show => {
    model.on(`change:${name}`, show)
    show()
  }
  const put = value => save(model, {[name]: value})
  if (kind == "menu") {
    const menu = node("select", {id}, ...(titles ?? options).map((title, i) => node("option", {value: i}, title)))
    menu.onchange = () => put(options[menu.value])
    box.append(menu)
    bind(() => { menu.value = options.indexOf(model.get(name)) })
    return box
  }
  if (kind == "text") {
    const field = node("input", {type: "search", id})
    field.oninput = () => put(field.value)
    box.append(field)
    bind(() => { if (field.value != model.get(name)) field.value = model.get(name) })
    return box
  }
  if (kind == "stops") {
    const slider = node("input", {type: "range", id, min: 0, max: options.length - 1, step: 1}), told = node("output", {for: id})
    slider.oninput = () => put(options[slider.value])
    box.append(slider, told)
    bind(() => {
      slider.value = options.indexOf(model.get(name))
      slider.setAttribute("aria-valuetext", (told.textContent = short(model.get(name))))
    })
    return box
  }
  const {to, from, step} = SCALES[kind], low = zero ? to(min) - 2 * step : to(min), tell = node("span", {class: "nc-wrong", role: "alert"})
  const slider = node("input", {type: "range", id, min: low, max: to(max), step})
  const field = node("input", {type: "text", inputmode: "decimal", "aria-label": `${label}, any value`})
  slider.oninput = () => put(zero && slider.value < to(min) - step / 2 ? 0 : Math.min(max, Math.max(min, from(+slider.value))))
  const whole = kind == "whole" || kind == "count", range = `${whole ? "a whole number" : "a number"} from ${min} to ${max}${zero ? ", or 0" : ""}`
  const show = () => {
    const value = model.get(name)
    slider.value = zero && value < min ? low : to(value)
    slider.setAttribute("aria-valuetext", (field.value = short(value, 4)))
    tell.textContent = ""
  }
  field.onchange = () => {
    const value = field.value.trim() ? Number(field.value) : NaN
    if (!(value <= max && (value >= min || (zero && value == 0)) && (!whole || value % 1 == 0)))
      tell.textContent = `${label} = ${field.value} is not allowed: it must be ${range}`
    else if (value == model.get(name)) show()
    else put(value)
  }
  box.append(slider, field, tell)
  bind(show)
  return box
}

// In the book a view can be sent: "#key:name=value&..." names it; what no control allows is passed over. A notebook's address is left alone.
function address(model, key, names, el) {
  if (!model.get("_book")) return
  const [found, given] = location.hash.slice(1).split(/:(.*)/s)
  if (found == key && given) {
    for (const [name, text] of new URLSearchParams(given)) {
      const now = model.get(name), value = typeof now == "number" ? Number(text) : typeof now == "boolean" ? text == "true" : text
      const {options} = model.get("controls").find(spec => spec.name == name) ?? {}
      if (names.includes(name) && !Number.isNaN(value) && (options?.includes(value) ?? true)) model.set(name, value)
    }
    el.scrollIntoView()
  }
  let due
  const write = () => history.replaceState(null, "", `#${key}:${new URLSearchParams(names.map(n => [n, model.get(n)]))}`)
  for (const name of names)
    model.on(`change:${name}`, () => {
      clearTimeout(due)
      due = setTimeout(write, 200) // a browser counts how often an address changes
    })
}

const SUPERSCRIPT = Object.fromEntries([..."0123456789-"].map((c, i) => [c, "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"[i]]))
const power = e => (Math.abs(e) < 4 ? String(+(10 ** e).toPrecision(1)) : "10" + [...String(e)].map(c => SUPERSCRIPT[c]).join(""))

// Places and labels of an axis's ticks: powers of ten, or steps of 1, 2 or 5.
function ticks([low, high], log, most) {
  if (log) {
    const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9), by = Math.ceil((to - from + 1) / most)
    const found = []
    for (let e = Math.ceil(from / by) * by; e <= to; e += by) found.push([10 ** e, power(e)])
    if (found.length > 1) return found
    const fine = []
    for (let e = from - 1; e <= to; e++) for (const m of [1, 2, 5]) fine.push(m * 10 ** e)
    return fine.filter(v => v >= low && v <= high).map(v => [v, short(v)])
  }
  const rough = (high - low) / most, size = 10 ** Math.floor(Math.log10(rough))
  const step = size * [1, 2, 5, 10].find(m => m * size >= rough - 1e-12), found = []
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push([i * step, short(i * step)])
  return found
}

// A chart that fills the width of `el`. `draw({x, y, lines, marks})`: axes {range, log, label}; lines {points, colour, dash,
// label, width, faint}; marks {x or y, label, colour}. On a log axis a value of 0 or less lies on the lower edge.
function chart(el, {height = 260, name}) {
  const box = node("div", {class: "nc-chart"}), legend = node("div", {class: "nc-legend"})
  let last
  el.append(box, legend)
  const draw = given => {
    const {x, y, lines, marks = []} = (last = given)
    const width = box.clientWidth || 360, left = 44, right = 20, top = 8, bottom = x.label ? 36 : 22
    const w = width - left - right, h = height - top - bottom
    const place = ({range: [a, b], log}, from, size) => v =>
      from + size * (log ? Math.log(Math.max(v, a) / a) / Math.log(b / a) : (v - a) / (b - a))
    const px = place(x, left, w), py = place(y, top + h, -h), svg = node("svg", {width, height, role: "img", "aria-label": name})
    for (const [v, label] of ticks(x.range, x.log, Math.max(2, w / 55)))
      svg.append(node("line", {class: "nc-grid", x1: px(v), x2: px(v), y1: top, y2: top + h}),
        node("text", {x: px(v), y: top + h + 15, "text-anchor": "middle"}, label))
    for (const [v, label] of ticks(y.range, y.log, Math.max(2, h / 40)))
      svg.append(node("line", {class: "nc-grid", x1: left, x2: left + w, y1: py(v), y2: py(v)}),
        node("text", {x: left - 5, y: py(v) + 4, "text-anchor": "end"}, label))
    if (x.label) svg.append(node("text", {x: left + w / 2, y: height - 4, "text-anchor": "middle"}, x.label))
    const inside = node("svg", {x: left, y: top, width: w, height: h, viewBox: `${left} ${top} ${w} ${h}`})
    for (const {x: at, y: level, colour} of marks) {
      const ends = at === undefined ? {x1: left, x2: left + w, y1: py(level), y2: py(level)} : {x1: px(at), x2: px(at), y1: top, y2: top + h}
      inside.append(node("line", {...ends, stroke: colour || "currentColor", "stroke-dasharray": "2 3", "stroke-width": 1.2}))
    }
    for (const {points, colour, dash, width: stroke = 2, faint} of lines) {
      const near = v => Math.max(-1e4, Math.min(1e4, v)).toFixed(1)
      const d = points.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b)).map(([a, b]) => `${near(px(a))} ${near(py(b))}`).join("L")
      if (d) inside.append(node("path", {d: `M${d}`, fill: "none", stroke: colour, "stroke-width": stroke, "stroke-dasharray": dash || "none", opacity: faint ? 0.35 : 1}))
    }
    svg.append(inside)
    for (const {x: at, y: level, label} of marks)
      if (label && at !== undefined && at >= x.range[0] && at <= x.range[1])
        svg.append(node("text", {x: px(at) + 3, y: top + 12}, label))
      else if (label && level !== undefined && level >= y.range[0] && level <= y.range[1])
        svg.append(node("text", {x: left + w - 3, y: py(level) - 4, "text-anchor": "end"}, label))
    box.replaceChildren(svg)
    legend.replaceChildren(...lines.filter(l => l.label).map(({label, colour, dash, faint}) => {
      const line = node("line", {x1: 0, x2: 26, y1: 5, y2: 5, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash || "none", opacity: faint ? 0.35 : 1})
      return node("span", {}, node("svg", {width: 26, height: 10, "aria-hidden": true}, line), ` ${label}`)
    }))
  }
  new ResizeObserver(() => last && box.clientWidth && draw(last)).observe(box)
  return draw
}

let made = 0
// The widget's box with a control for each of the model's `controls`
function start(model, el) {
  const root = node("div", {class: "nc-widget"}), panel = node("div", {class: "nc-controls"}), id = `nc-${++made}-${Math.random().toString(36).slice(2, 7)}`
  model.get("controls").forEach(spec => panel.append(control(model, spec, `${id}-${spec.name}`)))
  root.append(panel)
  el.append(root)
  return {root, panel, names: model.get("controls").map(spec => spec.name)}
}
