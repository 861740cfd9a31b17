// The laws of Theorems 3.1, 3.3 and 3.4 for any value, the same formulas as in `ncutils.theory`.
const theory = {
  // s_t / s_0 at a constant learning rate [steps + 1]
  nc0Law({lr, wd, momentum, steps}) {
    const law = [1]
    for (let t = 0, s = 1, v = 0; t < steps; t++) {
      v = momentum * v + wd * s
      s -= lr * v
      law.push(s)
    }
    return law
  },
  criticalDecay: ({lr, momentum}) => (1 - Math.sqrt(momentum)) ** 2 / lr,
  // Decay of alpha a step, -2 log |r1|, of the larger root of r^2 - (1 + beta - lr wd) r + beta
  alphaRate({lr, wd, momentum}) {
    const half = (1 + momentum - lr * wd) / 2, square = half ** 2 - momentum
    return square < 0 ? -Math.log(momentum) : -2 * Math.log(Math.abs(half) + Math.sqrt(square))
  },
  boundRate: ({lr, wd, momentum}) => (momentum > 0 ? (lr * wd) / -Math.log(momentum) : -Math.log1p(-Math.min(lr * wd, 1))),
  signgdwLimit: ({K, wd}) => (K - 2) ** 2 / wd ** 2,
  theorem33: ({K, wd, lr}, t) => theory.signgdwLimit({K, wd}) * (1 - (1 - lr * wd) ** t) ** 2,
  // Diagonal a and negative off-diagonal b of W under SignGD with coupled decay, and alpha [steps + 1]
  signgd({K, wd, lr, steps}) {
    const root = Math.sqrt(K - 1), alpha = [0]
    for (let t = 0, a = 0, b = 0; t < steps; t++) {
      const small = Math.exp(-(a + b) / root), g = small / (1 + (K - 1) * small) / root
      a += lr * Math.sign((K - 1) * g - wd * a)
      b += lr * Math.sign(g - wd * b)
      alpha.push((a - (K - 1) * b) ** 2)
    }
    return alpha
  },
  crossing(falling, high) {
    let low = 0
    for (let i = 0; i < 100; i++) {
      const middle = (low + high) / 2
      if (falling(middle) > 0) low = middle
      else high = middle
    }
    return (low + high) / 2
  },
  t1({K, wd, lr}, asPrinted = false) {
    const root = asPrinted ? 1 : Math.sqrt(K - 1)
    return theory.crossing(u => 1 / (root * (Math.exp((2 * u) / root) + K - 1)) - wd * u, 1 / (root * K * wd)) / lr
  },
  t2({K, wd, lr}) {
    const root = Math.sqrt(K - 1)
    return ((K - 1) * theory.crossing(b => 1 / (root * (Math.exp((K * b) / root) + K - 1)) - wd * b, 1 / (root * K * wd))) / lr
  },
}

// Up to n whole numbers from `first` to `last`, both among them
const spaced = (first, last, n) => [...new Set(Array.from({length: n}, (_, i) => Math.round(first + ((last - first) * i) / (n - 1))))]
const EXACT = "var(--nc-a)", OTHER = "var(--nc-b)"

// What each chapter draws of the values, and the regime they lie in
const VIEWS = {
  theorem31(v) {
    const product = v.lr * v.wd, t = spaced(0, v.steps, 500), law = theory.nc0Law(v), critical = (1 - Math.sqrt(v.momentum)) ** 2
    const log = -Math.log(v.momentum), rate = theory.boundRate(v), line = f => t.map(s => [s, f(s)])
    const regime =
      product < critical ? `below critical decay, ηλ < (1-√β)² = ${short(critical)}: NC0 falls without oscillating` :
      product <= (1 + Math.sqrt(v.momentum)) ** 2 && v.momentum > 0 ? `past critical decay, ηλ > (1-√β)² = ${short(critical)}: NC0 oscillates and α falls like βᵗ, whatever the decay` :
      product < 2 * (1 + v.momentum) ? "ηλ > (1+√β)²: the row sum changes its sign in each step" : "ηλ > 2(1+β): the row sum grows"
    const inside = v.momentum == 0 ? product < 1 : (2 * v.wd) / log < 1
    const bound = v.momentum > 0 && product > log ** 2 ? " The theorem's exponential ends below α: ηλ > log²β." : ""
    return {
      words: [`ηλ = ${short(product)}, ${regime}.${bound}`,
        `α falls by the factor ${short(Math.exp(-theory.alphaRate(v)), 5)} a step in the end; the theorem's exponential by ${short(Math.exp(-rate), 5)}. Its hypothesis ${v.momentum > 0 ? `2λ/log(1/β) = ${short((2 * v.wd) / log)} < 1` : "ηλ < 1"} ${inside ? "holds" : "does not hold"}.`],
      x: {range: [0, v.steps], label: "step"}, y: {range: [1e-12, 10], log: true},
      lines: [{points: line(s => law[s] ** 2), colour: EXACT, label: "α / α₀, exact law"},
        {points: line(s => Math.exp((-2 * product * s) / (1 - v.momentum))), colour: "currentColor", dash: "2 4", label: "first order"},
        {points: line(s => Math.exp(-rate * s)), colour: OTHER, dash: "7 4", label: "Theorem 3.1's exponential"}],
    }
  },
  theorem33(v) {
    const limit = theory.signgdwLimit(v), root = Math.sqrt(v.K - 1), shrink = v.lr * v.wd
    // e^-z rounds to zero from these z = 2 w / sqrt(K - 1) on
    const stops = {float32: 103.97, float64: 745.1}, level = z => ((v.K - 2) * z * root / 2) ** 2
    const under = Object.keys(stops).filter(name => level(stops[name]) < limit), most = 2 / (v.wd * root)
    const t = spaced(1, v.steps, 400), at99 = Math.log(1 - Math.sqrt(0.99)) / Math.log(Math.abs(1 - shrink))
    const regime = v.K == 2 ? "K = 2: the two signs of a column cancel, and α stays 0" :
      shrink >= 2 ? "ηλ ≥ 2: W grows in each step" : shrink > 1 ? "ηλ > 1: W overshoots its limit and swings in" : `W rises to its limit; α has 99 % of it after ${short(Math.max(1, Math.ceil(at99)), 4)} steps`
    const arithmetic = v.K == 2 ? "" : under.length ? `At the limit the logits differ by ${short(most)}: in ${under.join(" and ")} the softmax has rounded to zero before, and the theorem's step is no longer taken.` :
      `At the limit the logits differ by ${short(most)}: float32 holds it.`
    return {
      words: [`Limit (K-2)²/λ² = ${short(limit, 6)}. ${regime}.`, arithmetic],
      x: {range: [0, v.steps], label: "step"}, y: {range: [1e-3, Math.max(1e8, 30 * limit, 30 * level(stops.float64))], log: true},
      lines: v.K == 2 ? [] : [{points: t.map(s => [s, theory.theorem33(v, s)]), colour: EXACT, label: "α, exact signs"}],
      marks: [{y: limit, label: "limit"}, ...(v.K == 2 ? [] : Object.entries(stops).map(([name, z]) => ({y: level(z), colour: OTHER, label: `${name} rounds to zero above`})))],
    }
  },
  theorem34(v) {
    const T1 = theory.t1(v), printed = theory.t1(v, true), T2 = theory.t2(v)
    const steps = Math.round(Math.min(20000, Math.max(20, 1.3 * T2))), t = spaced(0, steps, 600)
    const alpha = theory.signgd({...v, steps}), highest = Math.max(...t.map(s => alpha[s]))
    const regime = v.K == 2 ? "K = 2: a = b in each step, and α stays 0" : T1 < 1 ? "T₁ < 1: α turns in its first step" :
      T2 > 20000 ? "the picture ends before T₂" : "α rises to T₁, falls to T₂, then oscillates by some K²η²"
    return {
      words: [`T₁ = ${short(T1, 4)} (as printed in the paper ${short(printed, 4)}), T₂ = ${short(T2, 5)}: ${regime}.`,
        `Highest α ${short(highest)} with coupled decay; with decoupled decay it goes on to ${short(theory.signgdwLimit(v))}. K²η² = ${short((v.K * v.lr) ** 2)}.`],
      x: {range: [0, steps], label: "step"}, y: {range: [0, 1.6 * highest + 1e-12]},
      lines: [{points: t.map(s => [s, alpha[s]]), colour: EXACT, label: "α, coupled decay"},
        {points: t.map(s => [s, theory.theorem33(v, s)]), colour: OTHER, dash: "7 4", label: "α, decoupled decay"}],
      marks: [{x: T1, label: "T₁"}, {x: printed, label: "T₁ as printed", colour: OTHER}, {x: T2, label: "T₂"}],
    }
  },
}

function render({model, el}) {
  const {root, names} = start(model, el), words = node("div", {class: "nc-words", "aria-live": "polite"})
  const view = VIEWS[model.get("law")], draw = chart(root, {height: 300, name: `alpha over the steps, ${model.get("law")}`})
  const show = () => {
    const found = view(Object.fromEntries(names.map(name => [name, model.get(name)])))
    draw(found)
    words.replaceChildren(...found.words.filter(Boolean).map(text => node("p", {}, text)))
  }
  address(model, model.get("law"), names, root)
  root.append(words)
  names.forEach(name => model.on(`change:${name}`, show))
  show()
}

export {theory}
export default {render}
