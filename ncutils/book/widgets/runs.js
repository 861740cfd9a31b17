// Stored runs as dots over two metrics; two of them, chosen by a dot or in a row of menus, with their curves and their last layer.
const FIELDS = {optimizer: "optimizer", lr: "learning rate", momentum: "momentum", wd: "weight decay", seed: "seed"}
const METRIC = {nc0: "NC0", nc1: "NC1", nc2: "NC2", nc3: "NC3", nc3c: "centred NC3", train_acc: "training accuracy", test_acc: "test accuracy"}
const LOG = key => key.startsWith("nc")
const near = (a, b) => (typeof a == "number" ? Math.abs(Math.log((a + 1e-6) / (b + 1e-6))) : a == b ? 0 : 1)

// The run that has as many fields, first to last, as asked for: where none has a value, the nearest that one has.
function nearest(runs, asked) {
  let left = runs
  for (const field of Object.keys(FIELDS)) {
    const least = Math.min(...left.map(run => near(run[field], asked[field])))
    left = left.filter(run => near(run[field], asked[field]) <= least)
  }
  return left[0]
}

function render({model, el}) {
  const {root, panel} = start(model, el), runs = model.get("runs"), id = `nc-${Math.random().toString(36).slice(2, 7)}`
  const inSetting = () => runs.filter(run => run.setting == model.get("setting"))
  const put = (name, value) => save(model, {[name]: value})
  const chosen = side => runs.find(run => run.hash == model.get(`run_${side}`))
  let turn = "a", playing

  // the dots
  const dots = node("div", {class: "nc-chart"}), legend = node("div", {class: "nc-legend"}), hint = node("p", {role: "status"})
  const scatter = () => {
    const x = model.get("x"), y = model.get("y"), keys = [x, y], last = (run, key) => run[key].at(-1)
    const found = inSetting().filter(run => keys.every(key => Number.isFinite(last(run, key)) && last(run, key) !== null && (!LOG(key) || last(run, key) > 0)))
    const width = dots.clientWidth || 360, height = 280, box = {left: 52, top: 8, w: width - 72, h: height - 48}
    const axis = (key, from, size) => {
      const values = found.map(run => last(run, key)), low = Math.min(...values), high = Math.max(...values)
      const range = LOG(key) ? [low / 1.4, high * 1.4] : [low - 0.03, high + 0.03]
      const at = v => from + size * (LOG(key) ? Math.log(v / range[0]) / Math.log(range[1] / range[0]) : (v - range[0]) / (range[1] - range[0]))
      return {at, marks: ticks(range, LOG(key), Math.max(2, Math.abs(size) / 60))}
    }
    const svg = node("svg", {width, height, role: "img", "aria-label": `${found.length} runs: ${METRIC[y]} over ${METRIC[x]}; the rows of menus below choose among them, too`})
    dots.replaceChildren(svg)
    if (!found.length) return
    const h = axis(x, box.left, box.w), v = axis(y, box.top + box.h, -box.h)
    for (const [value, label] of h.marks) svg.append(node("line", {class: "nc-grid", x1: h.at(value), x2: h.at(value), y1: box.top, y2: box.top + box.h}), node("text", {x: h.at(value), y: box.top + box.h + 15, "text-anchor": "middle"}, label))
    for (const [value, label] of v.marks) svg.append(node("line", {class: "nc-grid", x1: box.left, x2: box.left + box.w, y1: v.at(value), y2: v.at(value)}), node("text", {x: box.left - 5, y: v.at(value) + 4, "text-anchor": "end"}, label))
    svg.append(node("text", {x: box.left + box.w / 2, y: height - 4, "text-anchor": "middle"}, METRIC[x]), node("text", {x: box.left + 4, y: box.top + 12}, METRIC[y]))
    const ring = side => {
      const run = chosen(side)
      if (found.includes(run)) svg.append(node("circle", {cx: h.at(last(run, x)), cy: v.at(last(run, y)), r: 11, fill: "none", stroke: COLOUR[side], "stroke-width": 3, "stroke-dasharray": side == "b" ? "4 2" : "none"}))
    }
    for (const run of found) {
      const hollow = run.optimizer.endsWith("W"), colour = model.get("colours")[run.optimizer] ?? "grey"
      svg.append(node("circle", {cx: h.at(last(run, x)), cy: v.at(last(run, y)), r: 5.5, fill: hollow ? "none" : colour, stroke: colour, "stroke-width": 2, opacity: run.valid ? 1 : 0.3, class: "nc-dot"},
        node("title", {}, words(run))))
    }
    SIDES.forEach(ring)
    legend.replaceChildren(...[...new Set(found.map(run => run.optimizer))].map(name => {
      const colour = model.get("colours")[name] ?? "grey", dot = node("circle", {cx: 6, cy: 6, r: 4.5, fill: name.endsWith("W") ? "none" : colour, stroke: colour, "stroke-width": 2, class: "nc-dot"})
      return node("span", {}, node("svg", {width: 12, height: 12, "aria-hidden": true}, dot), ` ${name}`)
    }))
    // a finger need not hit a dot: the nearest within 22 pixels is meant
    svg.onclick = event => {
      const frame = svg.getBoundingClientRect(), px = event.clientX - frame.left, py = event.clientY - frame.top
      const far = run => Math.hypot(h.at(last(run, x)) - px, v.at(last(run, y)) - py), best = found.reduce((a, b) => (far(a) <= far(b) ? a : b))
      if (far(best) > 22) return
      put(`run_${turn}`, best.hash)
      turn = turn == "a" ? "b" : "a"
      show()
    }
  }
  const words = run => `${run.optimizer}, lr ${short(run.lr)}, momentum ${short(run.momentum)}, wd ${short(run.wd)}, seed ${run.seed}${run.valid ? "" : " (under 99 % training accuracy)"}`

  // two rows of menus; a value that no run has beside the choices before it is disabled
  const sides = Object.fromEntries(SIDES.map(side => {
    const row = node("fieldset", {class: "nc-row"}, node("legend", {}, side == "a" ? "first run" : "second run"))
    const menus = Object.entries(FIELDS).map(([field, label]) => {
      const menu = node("select", {id: `${id}-${field}-${side}`})
      menu.onchange = () => put(`run_${side}`, nearest(inSetting(), {...chosen(side), [field]: menu.options[menu.selectedIndex].value0}).hash)
      row.append(node("span", {class: "nc-field"}, node("label", {for: menu.id}, label), menu))
      return [field, menu]
    })
    const picture = node("div"), said = node("dl", {class: "nc-readout"}), command = node("code"), copy = node("button", {type: "button"}, "Copy")
    copy.onclick = async () => {
      await navigator.clipboard?.writeText(command.textContent).catch(() => {})
      getSelection().selectAllChildren(command) // where the clipboard is closed, it is marked for the reader's own copying
      copy.textContent = "Copied"
      setTimeout(() => { copy.textContent = "Copy" }, 1500)
    }
    return [side, {row, menus, picture, said, command, box: node("div", {class: "nc-side"}, node("p", {class: "nc-title"}), picture, said), remake: node("p", {class: "nc-remake"}, `${side == "a" ? "First" : "Second"} run again: `, command, " ", copy)}]
  }))
  const fill = side => {
    let left = inSetting()
    for (const [field, menu] of sides[side].menus) {
      const values = [...new Set(inSetting().map(run => run[field]))].sort((a, b) => (typeof a == "number" ? a - b : 0)), now = chosen(side)[field]
      menu.replaceChildren(...values.map(value => {
        const option = node("option", {}, typeof value == "number" ? short(value) : value)
        option.value0 = value
        option.disabled = !left.some(run => run[field] === value)
        option.selected = value === now
        return option
      }))
      left = left.filter(run => run[field] === now)
    }
  }

  // one scrubber over the epochs at which the first run has its last layer
  const layers = run => run.means.flatMap((means, i) => (means ? [i] : []))
  const scrubber = node("input", {type: "range", id: `${id}-epoch`, min: 0, step: 1}), at = node("output", {for: `${id}-epoch`})
  const play = node("button", {type: "button"}, "▶ Play"), fix = node("button", {type: "button", role: "switch"}, "Fix the gauge")
  const stop = () => {
    clearInterval(playing)
    playing = null
    play.textContent = "▶ Play"
  }
  play.onclick = () => {
    if (playing) return stop()
    if (scrubber.value == scrubber.max) scrubber.value = 0
    play.textContent = "❚❚ Pause"
    playing = setInterval(() => {
      scrubber.value = +scrubber.value + 1
      look()
      if (scrubber.value == scrubber.max) stop()
    }, 500)
    look()
  }
  fix.onclick = () => put("gauge", !model.get("gauge"))
  scrubber.oninput = () => {
    stop()
    look()
  }
  const plots = node("div", {class: "nc-plots"}), charts = Object.fromEntries(["nc0", "nc1", "nc2", "nc3"].map(key => {
    const box = node("figure", {}, node("figcaption", {}, METRIC[key]))
    plots.append(box)
    return [key, chart(box, {height: 170, name: `${METRIC[key]} over the epochs, both runs`})]
  }))
  root.append(dots, legend, hint, sides.a.row, sides.b.row,
    node("div", {class: "nc-tools"}, play, node("label", {for: scrubber.id}, "epoch"), scrubber, at, fix),
    node("div", {class: "nc-pair"}, sides.a.box, sides.b.box), plots, sides.a.remake, sides.b.remake)

  const value = (run, key, i) => (run[key][i] === null ? "not defined" : LOG(key) ? short(run[key][i]) : `${(100 * run[key][i]).toFixed(1)} %`)
  const look = () => {
    const gauge = model.get("gauge"), epoch = chosen("a").epochs[layers(chosen("a"))[scrubber.value]]
    at.textContent = epoch
    scrubber.setAttribute("aria-valuetext", `epoch ${epoch}`)
    for (const side of SIDES) {
      const run = chosen(side), i = layers(run).reduce((best, j) => (Math.abs(run.epochs[j] - epoch) < Math.abs(run.epochs[best] - epoch) ? j : best), 0), {box, picture, said} = sides[side]
      box.firstChild.textContent = `${words(run)}, epoch ${run.epochs[i]}`
      const K = run.classes, radius = Math.sqrt(2 / (K * (K - 1))), corners = Array.from({length: K}, (_, k) => [radius * Math.sin((2 * Math.PI * k) / K), radius * Math.cos((2 * Math.PI * k) / K)])
      const points = name => Array.from({length: K}, (_, k) => [run[name][i][2 * k] / 1000, run[name][i][2 * k + 1] / 1000])
      const share = run.gauge_share[i] ?? 0, centred = points("centred"), shrink = Math.sqrt(Math.max(0, 1 - share))
      const layer = {means: points("means"), centred, weights: centred.map(row => row.map(x => shrink * x)), lift: Math.sqrt(Math.max(0, share) / K)}
      geometry(picture, corners).draw(layer, gauge ? 1 : 0, `${words(run)}: class means and rows of W beside a regular polygon's corners`)
      const rows = {NC0: gauge ? "0" : value(run, "nc0", i), NC3: value(run, gauge ? "nc3c" : "nc3", i), "training accuracy": value(run, "train_acc", i)}
      said.replaceChildren(...Object.entries(rows).flatMap(([label, text]) => [node("dt", {}, label), node("dd", {}, text)]))
    }
    for (const [key, draw] of Object.entries(charts)) {
      const of = gauge && key == "nc3" ? "nc3c" : key, lines = SIDES.map(side => {
        const run = chosen(side)
        return {points: run.epochs.map((e, i) => [e, run[of][i] ?? NaN]), colour: COLOUR[side], dash: DASH[side], label: key == "nc0" ? (side == "a" ? "first run" : "second run") : "", faint: gauge && key == "nc0"}
      })
      const values = lines.flatMap(({points}) => points.map(([, v]) => v)).filter(v => v > 0), last = Math.max(...lines.flatMap(({points}) => points.map(([e]) => e)))
      draw({x: {range: [0, last], label: key == "nc2" || key == "nc3" ? "epoch" : ""}, y: {log: true, range: [10 ** Math.floor(Math.log10(Math.min(...values))), 10 ** Math.ceil(Math.log10(Math.max(...values)) + 1e-9)]}, lines, marks: [{x: epoch}]})
    }
  }
  const show = () => {
    for (const side of SIDES) {
      if (chosen(side)?.setting != model.get("setting")) model.set(`run_${side}`, nearest(inSetting(), chosen(side) ?? inSetting()[0]).hash)
      fill(side)
      sides[side].command.textContent = chosen(side).command
    }
    const end = layers(chosen("a")).length - 1
    if (scrubber.max != end || scrubber.dataset.run != model.get("run_a")) Object.assign(scrubber, {max: end, value: end})
    scrubber.dataset.run = model.get("run_a")
    fix.setAttribute("aria-checked", String(model.get("gauge")))
    hint.textContent = `A dot is a run at its end: filled with coupled decay, hollow with decoupled decay, faint under 99 % training accuracy. The next click chooses the ${turn == "a" ? "first" : "second"} run.`
    scatter()
    look()
  }
  const names = ["setting", "x", "y", "run_a", "run_b", "gauge"]
  address(model, model.get("key"), names, root)
  names.forEach(name => model.on(`change:${name}`, show))
  new ResizeObserver(scatter).observe(dots)
  show()
  return stop
}

export {nearest}
export default {render}
