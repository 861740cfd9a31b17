// NC0 of a trained network set to any value through the length of W's mean row: the metrics and what the network computes.
function gaugeAt(nc0, {gram, cross, nc3c}) {
  // W = W_c + 1 w^T with w = nc0 u / K: W W^T from W_c W_c^T (`gram`) and W_c u (`cross`)
  const K = gram.length, cosine = 1 - nc3c ** 2 / 2, norm = A => Math.hypot(...A.flat())
  const toSimplex = A => {
    const size = norm(A)
    return norm(A.map((row, k) => row.map((x, l) => x / size - ((k == l) - 1 / K) / Math.sqrt(K - 1))))
  }
  const shared = nc0 ** 2 / K, centred = gram.reduce((sum, row, k) => sum + row[k], 0), share = shared / (centred + shared)
  const full = gram.map((row, k) => row.map((x, l) => x + (nc0 / K) * (cross[k] + cross[l]) + nc0 ** 2 / K ** 2))
  return {share, nc2w: toSimplex(full), nc2wc: toSimplex(gram), nc3: Math.sqrt(Math.max(0, 2 - 2 * cosine * Math.sqrt(1 - share))), nc3c}
}

// Probabilities [N, K], mean loss and share that is right, of logits of W_c plus nc0 times each image's `shift`
function computed(nc0, {logits, shift, labels}) {
  const n = labels.length, K = logits.length / n, probabilities = new Float64Array(n * K)
  let loss = 0, right = 0
  for (let s = 0; s < n; s++) {
    const row = probabilities.subarray(s * K, s * K + K).map((_, k) => logits[s * K + k] + nc0 * shift[s]), largest = Math.max(...row)
    const e = row.map(x => Math.exp(x - largest)), sum = e.reduce((a, b) => a + b), label = labels[s]
    probabilities.set(e.map(x => x / sum), s * K)
    loss += (Math.log(sum) + largest - row[label]) / n
    right += (row[label] == largest) / n
  }
  return {probabilities, loss, right, K}
}

// Labelled bars from 0 to `most`
function bars(title, items, most) {
  return node("div", {class: "nc-bars"}, node("p", {class: "nc-title"}, title), ...items.flatMap(({label, value, colour, text}) =>
    [node("span", {}, label), node("span", {class: "nc-bar", style: `width: ${Math.min(100, (100 * value) / most)}%; background: ${colour}`}), node("span", {class: "nc-value"}, text)]))
}

function render({model, el}) {
  const {root, names} = start(model, el), figure = node("div", {class: "nc-two"}), words = node("div", {"aria-live": "polite"})
  const data = Object.fromEntries(["gram", "cross", "nc3c", "logits", "shift", "labels"].map(name => [name, model.get(name)]))
  const first = computed(0, data), {K} = first
  // the image whose class is least clear
  const best = Array.from({length: data.labels.length}, (_, s) => Math.max(...first.probabilities.subarray(s * K, s * K + K))), unsure = best.indexOf(Math.min(...best))
  const show = () => {
    const nc0 = model.get("NC0"), metrics = gaugeAt(nc0, data), now = computed(nc0, data)
    const change = now.probabilities.reduce((most, x, i) => Math.max(most, Math.abs(x - first.probabilities[i])), 0)
    const metric = (label, key, colour) => ({label, value: metrics[key], colour, text: metrics[key].toFixed(3)})
    figure.replaceChildren(
      bars("what the paper's metrics say, and the centred ones", [metric("NC2W", "nc2w", "var(--nc-b)"), metric("centred NC2W", "nc2wc", "var(--nc-a)"),
        metric("NC3", "nc3", "var(--nc-b)"), metric("centred NC3", "nc3c", "var(--nc-a)")], 1.6),
      bars("what the network says of one image", Array.from({length: K}, (_, k) => {
        const value = now.probabilities[unsure * K + k]
        return {label: `class ${k}`, value, colour: "currentColor", text: value.toFixed(3)}
      }), 1))
    words.replaceChildren(node("p", {}, `NC0 = ${short(nc0)}, gauge share ${(100 * metrics.share).toFixed(1)} % of ‖W‖². Loss ${now.loss.toFixed(6)}, accuracy ${(100 * now.right).toFixed(2)} %; no probability of ${data.labels.length} images differs by more than ${short(change, 1)} from that at NC0 = 0.`))
  }
  address(model, "gauge", names, root)
  root.append(figure, words)
  names.forEach(name => model.on(`change:${name}`, show))
  show()
}

export {gaugeAt, computed}
export default {render}
