// Two small networks trained side by side in the reader's browser, from the same weights on the same batches.
const setting = (a, b, more = {}) => {
  const values = {classes: 3, batch: 128, seed: 0, gauge: false, steps: 2000, ...more}
  for (const [side, [optimizer, lr, wd, momentum]] of [["a", a], ["b", b]])
    Object.assign(values, {[`optimizer_${side}`]: optimizer, [`lr_${side}`]: lr, [`wd_${side}`]: wd, [`momentum_${side}`]: momentum})
  return values
}
const ADAM = ["Adam", 0.001, 0.05, 0.9], ADAMW = ["AdamW", 0.001, 5, 0.9]

// What the presets set, and what to look for: two sentences each, which a test trains and checks.
const PRESETS = {
  "Adam collapses": {values: setting(ADAM, ADAMW), look:
    "Under Adam (left) the discs, the class means, and the tips of the rows of W meet in the corners, and NC0 falls below a twentieth of its start. AdamW, from the same weights on the same batches, brings the discs there, too, but its rows float above them, lifted by their mean: NC0 stays above a quarter of its start."},
  "AdamW, and its gauge": {values: setting(ADAMW, ADAM), look:
    "Play to the end, then fix the gauge: the rows of AdamW's W (left) come down onto the means, NC0 is 0 and NC3 falls to near Adam's. No prediction changes, since the softmax does not see what was taken away: NC0 and a good part of NC3 measured it."},
  "Theorem 3.3: W runs to the box's corner": {values: setting(["SignumW", 0.001, 5, 0.9], ["Signum", 0.001, 0.05, 0.9]), look:
    "SignumW's decay draws every entry of W within 1/λ = 0.2, and the largest comes to that wall: the signs of the steps do not sum to zero over the rows, so NC0 settles above half of its start. Signum has the decay inside the sign, and its NC0 falls below a twentieth of its start."},
  "Muon: decoupled, and on the law": {values: setting(["MuonW", 0.02, 0.1, 0.9], ["AdamW", 0.001, 2, 0.9]), look:
    "MuonW (left) has decoupled decay, as AdamW has, but its step treats the rows of the gradient alike: NC0 lies on the exact law (dotted) and falls below a fiftieth of its start. AdamW, with the same ηλ and so the same law, divides entry by entry, and its NC0 stays above half of its start."},
  "No decay": {values: setting(["SGD", 0.05, 0, 0.9], ["Adam", 0.001, 0, 0.9]), look:
    "Without decay the NC0 of SGD does not move: every gradient's rows sum to zero, and so do its steps. Adam divides entry by entry, its steps do not sum to zero, and its NC0 drifts, here by a few percent; neither collapses, though both fit all images."},
  "Past critical decay": {values: setting(["SGD", 0.05, 0.015, 0.95], ["SGD", 0.05, 0.05, 0.95], {steps: 600}), look:
    "Both decays are past (1 - √β)²/η = 0.013, where NC0 oscillates on its way down and lies on the exact law (dotted) all the same. Three times the decay no longer makes NC0 fall faster: both envelopes fall like β to the power t/2."},
}

// The worker: makes the network, trains as many steps as it is asked to, and measures.
function serve({create, step, measure}) {
  let net, options
  onmessage = ({data}) => {
    if (data.create) net = create(data.create)
    options = data.options
    const start = performance.now()
    for (let i = 0; i < data.steps; i++) step(net, options)
    const ms = performance.now() - start
    postMessage({...measure(net), ms})
  }
}

function trainer() {
  const url = URL.createObjectURL(new Blob([`(${serve})((${engine})())`], {type: "text/javascript"})), worker = new Worker(url)
  return {
    ask: message => new Promise((resolve, reject) => {
      worker.onmessage = ({data}) => resolve(data)
      worker.onerror = event => reject(new Error(event.message))
      worker.postMessage(message)
    }),
    end() {
      worker.terminate()
      URL.revokeObjectURL(url)
    },
  }
}

function render({model, el}) {
  const specs = Object.fromEntries(model.get("controls").map(spec => [spec.name, spec])), id = `nc-${Math.random().toString(36).slice(2, 7)}`
  const make = name => control(model, specs[name], `${id}-${name}`)
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches
  const root = node("div", {class: "nc-widget nc-playground"}), button = (text, act) => {
    const made = node("button", {type: "button"}, text)
    made.onclick = act
    return made
  }
  // the page
  const preset = node("select", {id: `${id}-preset`}, node("option", {value: ""}, "settings of your own"), ...Object.keys(PRESETS).map(name => node("option", {value: name}, name)))
  const look = node("p", {class: "nc-look", "aria-live": "polite"}), told = node("span", {class: "nc-told", role: "status"})
  const play = button("▶ Play", () => (playing ? pause() : start())), fix = button("Fix the gauge", () => put("gauge", !model.get("gauge")))
  fix.setAttribute("role", "switch")
  const tools = node("div", {class: "nc-tools"}, play, button("Step", () => { pause(); advance(1) }), button("Reset", () => reset()), fix, told)
  const sides = Object.fromEntries(SIDES.map(side => {
    const picture = node("div"), words = node("dl", {class: "nc-readout"}), box = node("div", {class: "nc-side"}, make(`optimizer_${side}`), picture, words)
    return [side, {box, picture, words, settings: node("fieldset", {class: "nc-settings"}, node("legend"), ...["lr", "wd", "momentum"].map(name => make(`${name}_${side}`)))}]
  }))
  const plots = node("div", {class: "nc-plots"}), note = node("p", {class: "nc-note"})
  const charts = Object.fromEntries(["nc0", "nc1", "nc2", "nc3", "loss", "accuracy"].map(key => {
    const box = node("figure", {}, node("figcaption", {}, NAMES[key]))
    plots.append(box)
    return [key, chart(box, {height: 150, name: `${NAMES[key]} over the steps, both networks`})]
  }))
  root.append(node("div", {class: "nc-control"}, node("label", {for: `${id}-preset`}, "what to look at"), preset), look, tools,
    node("div", {class: "nc-pair"}, sides.a.box, sides.b.box), note, node("div", {class: "nc-pair nc-sliders"}, sides.a.settings, sides.b.settings),
    plots, node("div", {class: "nc-controls"}, ...["classes", "batch", "seed", "steps"].map(make)))
  el.append(root)

  // training
  let playing = false, busy = Promise.resolve(), history = {a: [], b: []}, views = {}, fixed = 0, perFrame = 64, round = 0
  const workers = {a: trainer(), b: trainer()}
  const put = (name, value) => save(model, {[name]: value})
  const options = side => {
    const name = model.get(`optimizer_${side}`), wd = model.get(`wd_${side}`), decoupled = name.endsWith("W")
    return {rule: name.replace(/W$/, "").toLowerCase(), lr: model.get(`lr_${side}`), momentum: model.get(`momentum_${side}`),
      coupled_wd: decoupled ? 0 : wd, decoupled_wd: decoupled ? wd : 0, batch: model.get("batch")}
  }
  // One request at a time; what was asked for before a reset is thrown away.
  const ask = message => (busy = busy.then(async () => {
    const now = round, found = await Promise.all(SIDES.map(side => workers[side].ask({...message, options: options(side)})))
    if (now != round) return
    SIDES.forEach((side, i) => history[side].push(found[i]))
    const [{step, loss}, other] = found, slow = Math.max(found[0].ms, other.ms)
    if (message.steps > 8) perFrame = Math.max(1, Math.round((message.steps * 45) / slow))
    told.textContent = `step ${step}` + (playing && message.steps > 8 ? `, ${Math.round((1000 * message.steps) / slow)} a second` : "")
    if (!Number.isFinite(loss + other.loss)) {
      pause()
      told.textContent = `step ${step}: the loss is no longer a number; a smaller learning rate or decay keeps it one`
    }
    show()
  }))
  const advance = n => ask({steps: n})
  const reset = () => {
    pause()
    round++
    const K = model.get("classes"), corners = engine().simplex(K).map(row => row.map(x => x / Math.sqrt(K - 1)))
    history = {a: [], b: []}
    views = Object.fromEntries(SIDES.map(side => [side, geometry(sides[side].picture, corners)]))
    return ask({steps: 0, create: {pixels: model.get("pixels"), labels: model.get("labels"), classes: K, seed: model.get("seed")}})
  }
  const pause = () => {
    playing = false
    play.textContent = "▶ Play"
  }
  // Steps a frame grow with the steps taken, so that the eye follows all decades of the axis.
  const start = async () => {
    if (history.a.at(-1)?.step >= model.get("steps")) await reset()
    playing = true
    play.textContent = "❚❚ Pause"
    while (playing) {
      const done = history.a.at(-1).step, left = model.get("steps") - done
      if (left <= 0) break
      await Promise.all([advance(Math.min(left, perFrame, Math.ceil((done + 1) / 25))), new Promise(next => (calm ? setTimeout(next, 300) : requestAnimationFrame(next)))])
      if (!calm) SIDES.forEach(side => views[side].turn(0.01))
    }
    pause()
    put("measured", Object.fromEntries(SIDES.map(side => [side, numbers(history[side].at(-1))])))
  }

  // drawing
  const show = () => {
    const gauge = model.get("gauge"), last = history.a.at(-1)
    if (!last) return
    for (const side of SIDES) {
      const found = history[side].at(-1), optimizer = model.get(`optimizer_${side}`)
      views[side].draw(found, fixed, `${optimizer}: class means and rows of W beside the corners of a simplex; NC0 ${short(found.nc0)}, NC3 ${short(gauge ? found.nc3c : found.nc3)}`)
      sides[side].settings.firstChild.textContent = `${side == "a" ? "left" : "right"}: ${optimizer}`
      const lines = {nc0: ["NC0", gauge ? 0 : found.nc0], nc3: ["NC3", gauge ? found.nc3c : found.nc3], accuracy: ["accuracy", found.accuracy], largest: ["largest |W|", found.largest]}
      sides[side].words.replaceChildren(...Object.entries(lines).flatMap(([key, [label, value]]) =>
        [node("dt", {}, label), node("dd", {"data-key": key, "data-value": value}, key == "accuracy" ? `${(100 * value).toFixed(1)} %` : short(value))]))
    }
    note.textContent = gauge ? `The mean row of W is taken from all its rows, after training and for the picture alone. Largest change of a probability, over all images of both networks: ${short(Math.max(last.moved, history.b.at(-1).moved), 1)}.` : ""
    const reach = [1, Math.max(10, model.get("steps"))]
    for (const [key, draw] of Object.entries(charts)) {
      const lines = SIDES.flatMap(side => {
        const look = {colour: COLOUR[side], dash: DASH[side]}, points = column => history[side].map(row => [Math.max(row.step, 1), row[column]])
        const raw = {...look, points: points(key), faint: gauge && (key == "nc0" || key == "nc3")}, more = []
        if (key == "nc3" && gauge) more.push({...look, points: points("nc3c")})
        if (key == "nc0" && lawful(options(side))) more.push({...look, points: points("law"), dash: "1 4", width: 3})
        return [{...raw, label: key == "nc0" ? model.get(`optimizer_${side}`) : ""}, ...more]
      })
      const values = lines.flatMap(({points}) => points.map(([, v]) => v)).filter(v => v > 0)
      const decade = (v, round) => 10 ** round(Math.log10(v))
      const y = key == "accuracy" ? {range: [0, 1]} : {log: true, range: [Math.max(1e-12, decade(Math.min(...values, 0.1), Math.floor)), decade(Math.max(...values, 1), Math.ceil)]}
      draw({x: {range: reach, log: true, label: "step"}, y, lines})
    }
  }
  // The gauge is fixed and let go in half a second, or at once where motion is not wanted.
  let move
  const slide = () => {
    const goal = model.get("gauge") ? 1 : 0, from = fixed, begun = performance.now()
    fix.setAttribute("aria-checked", String(goal == 1))
    cancelAnimationFrame(move)
    const next = now => {
      const share = calm ? 1 : Math.min(1, Math.max(0, (now - begun) / 500))
      fixed = from + (goal - from) * share
      show()
      if (share < 1) move = requestAnimationFrame(next)
    }
    move = requestAnimationFrame(next)
  }

  // what the model's values do
  const names = Object.keys(specs).concat("gauge")
  const chosen = () => Object.keys(PRESETS).filter(name => Object.entries(PRESETS[name].values).every(([key, v]) => key == "gauge" || model.get(key) === v))
  const name = () => {
    if (chosen().includes(preset.value)) return
    preset.value = chosen()[0] ?? ""
    look.textContent = PRESETS[preset.value]?.look ?? ""
  }
  preset.onchange = () => {
    const {values, look: text} = PRESETS[preset.value] ?? {values: {}, look: ""}
    save(model, values)
    look.textContent = text
    reset()
  }
  address(model, "playground", names, root)
  for (const key of names) model.on(`change:${key}`, name)
  for (const key of ["classes", "seed"]) model.on(`change:${key}`, () => reset())
  for (const key of ["steps", "optimizer_a", "optimizer_b"]) model.on(`change:${key}`, show)
  model.on("change:gauge", slide)
  root.addEventListener("keydown", event => {
    if (event.key == " " && !/INPUT|SELECT|BUTTON/.test(event.target.tagName)) {
      event.preventDefault()
      play.click()
    }
  })
  name()
  slide()
  reset()
  return () => {
    pause()
    SIDES.forEach(side => workers[side].end())
  }
}

const NAMES = {nc0: "NC0 (dotted: the law)", nc1: "NC1", nc2: "NC2", nc3: "NC3", loss: "loss", accuracy: "training accuracy"}
const lawful = ({rule, coupled_wd}) => rule == "sgd" || coupled_wd == 0
const numbers = found => Object.fromEntries(Object.entries(found).filter(([, value]) => typeof value == "number"))

export {engine, PRESETS}
export default {render}
