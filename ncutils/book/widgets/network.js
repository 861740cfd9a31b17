// A network of 64-32-16-K units with ReLU, its optimizers and its neural-collapse metrics, in float64. `engine` names
// nothing outside itself, so that its text is a worker's, too: a page opened from disk may not start one from a file.
function engine() {
  const HIDDEN = [32, 16], ADAM = {beta2: 0.999, eps: 1e-8}

  // mulberry32: uniform in [0, 1), 32 bits
  function generator(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
    }
  }

  // K orthonormal-in-columns rows [K, K - 1] that sum to zero, a simplex; the first two coordinates are a regular K-gon
  function simplex(K) {
    const column = (j, wave) => Array.from({length: K}, (_, k) => wave((2 * Math.PI * j * k) / K))
    const columns = []
    for (let j = 1; columns.length < K - 1; j++)
      for (const wave of 2 * j == K ? [Math.cos] : [Math.sin, Math.cos]) {
        const c = column(j, wave), norm = Math.hypot(...c)
        columns.push(c.map(x => x / norm))
      }
    return Array.from({length: K}, (_, k) => columns.map(c => c[k]))
  }

  // `pixels` holds a letter a pixel (a = 0), `labels` a digit an image; those of the first K classes are used, standardised.
  function create({pixels, labels, classes, seed}) {
    const kept = [...labels].flatMap((label, n) => (label < classes ? [n] : []))
    const inputs = pixels.length / labels.length, images = new Float64Array(kept.length * inputs)
    kept.forEach((n, i) => {
      for (let j = 0; j < inputs; j++) images[i * inputs + j] = pixels.charCodeAt(n * inputs + j) - 97
    })
    const mean = images.reduce((a, b) => a + b) / images.length
    const deviation = Math.sqrt(images.reduce((a, b) => a + (b - mean) ** 2, 0) / images.length)
    images.forEach((x, i) => { images[i] = (x - mean) / deviation })

    const sizes = [inputs, ...HIDDEN, classes], random = generator(seed)
    const count = sizes.slice(1).reduce((n, out, l) => n + out * (sizes[l] + 1), 0)
    const net = {sizes, images, labels: kept.map(n => +labels[n]), random, step: 0, t: 0, order: [], at: 0}
    for (const name of ["params", "grads", "first", "second"]) net[name] = new Float64Array(count)
    net.matrix = new Uint8Array(count) // 1 where a parameter is an entry of a W
    net.layers = []
    for (let l = 1, at = 0; l < sizes.length; l++) {
      const n = sizes[l] * sizes[l - 1], view = (name, from, length) => net[name].subarray(from, from + length)
      const layer = {inputs: sizes[l - 1], outputs: sizes[l]}
      for (const [name, key] of [["params", ""], ["grads", "d"]]) {
        layer[key + "W"] = view(name, at, n)
        layer[key + "b"] = view(name, at + n, sizes[l])
      }
      net.layers.push(layer)
      net.matrix.fill(1, at, at + n)
      at += n + sizes[l]
    }
    for (const {inputs, W, b} of net.layers) // as torch.nn.Linear: uniform within 1 / sqrt(inputs)
      for (const part of [W, b]) part.forEach((_, i) => { part[i] = (2 * random() - 1) / Math.sqrt(inputs) })
    net.law = {s: rowSum(net), v: 0}
    return net
  }

  const head = net => net.layers[net.layers.length - 1]

  function rowMean({W, inputs, outputs}) {
    return Array.from({length: inputs}, (_, i) => {
      let sum = 0
      for (let k = 0; k < outputs; k++) sum += W[k * inputs + i]
      return sum / outputs
    })
  }

  const rowSum = net => head(net).outputs * Math.hypot(...rowMean(head(net)))

  // The innermost loops, four at a time: sum of a b over n places, and a += d b
  function product(a, i, b, j, n) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0
    for (const end = i + n; i < end; i += 4, j += 4) {
      s0 += a[i] * b[j]
      s1 += a[i + 1] * b[j + 1]
      s2 += a[i + 2] * b[j + 2]
      s3 += a[i + 3] * b[j + 3]
    }
    return s0 + s1 + (s2 + s3)
  }

  function add(a, i, d, b, j, n) {
    for (const end = i + n; i < end; i += 4, j += 4) {
      a[i] += d * b[j]
      a[i + 1] += d * b[j + 1]
      a[i + 2] += d * b[j + 2]
      a[i + 3] += d * b[j + 3]
    }
  }

  // Outputs of each layer [n, outputs], before the last one's softmax
  function forward(net, input, n) {
    return net.layers.map(({W, b, inputs, outputs}, l) => {
      const out = new Float64Array(n * outputs)
      for (let o = 0; o < outputs; o++) {
        let s = 0
        for (; s + 4 <= n; s += 4) { // W is read once for four samples
          let at = s * outputs + o, s0 = b[o], s1 = s0, s2 = s0, s3 = s0
          for (let i = o * inputs, end = i + inputs, j = s * inputs; i < end; i++, j++) {
            const w = W[i]
            s0 += w * input[j]
            s1 += w * input[j + inputs]
            s2 += w * input[j + 2 * inputs]
            s3 += w * input[j + 3 * inputs]
          }
          [out[at], out[at + outputs], out[at + 2 * outputs], out[at + 3 * outputs]] = [s0, s1, s2, s3]
        }
        for (; s < n; s++) out[s * outputs + o] = b[o] + product(W, o * inputs, input, s * inputs, inputs)
      }
      if (l < net.layers.length - 1) for (let i = 0; i < out.length; i++) if (!(out[i] > 0)) out[i] = 0
      return (input = out)
    })
  }

  // Replaces logits [n, K] by probabilities less one-hot labels; returns the mean loss and the share that is right.
  function softmax(logits, labels, K) {
    let loss = 0, right = 0
    labels.forEach((label, s) => {
      const row = logits.subarray(s * K, (s + 1) * K), largest = Math.max(...row), own = row[label]
      let sum = 0
      row.forEach((x, k) => { sum += row[k] = Math.exp(x - largest) })
      loss += Math.log(sum) + largest - own
      right += own == largest
      row.forEach((x, k) => { row[k] = x / sum - (k == label) })
    })
    return [loss / labels.length, right / labels.length]
  }

  // Rows of one epoch in random order, `batch` at a time; what is left at its end is dropped.
  function draw(net, batch) {
    const n = net.labels.length
    batch = Math.min(batch, n)
    if (net.at + batch > net.order.length) {
      net.order = Array.from({length: n}, (_, i) => i)
      for (let i = n - 1; i > 0; i--) {
        const j = Math.floor(net.random() * (i + 1));
        [net.order[i], net.order[j]] = [net.order[j], net.order[i]]
      }
      net.at = 0
    }
    return net.order.slice(net.at, (net.at += batch))
  }

  function backward(net, rows) {
    const n = rows.length, inputs = net.sizes[0], input = new Float64Array(n * inputs)
    rows.forEach((row, s) => input.set(net.images.subarray(row * inputs, (row + 1) * inputs), s * inputs))
    const outs = [input, ...forward(net, input, n)]
    let delta = outs.pop()
    const [loss] = softmax(delta, rows.map(row => net.labels[row]), net.sizes[net.sizes.length - 1])
    net.grads.fill(0)
    for (let l = net.layers.length - 1; l >= 0; l--) {
      const {W, dW, db, inputs, outputs} = net.layers[l], x = outs[l], before = new Float64Array(l ? n * inputs : 0)
      for (let s = 0; s < n; s++)
        for (let o = 0; o < outputs; o++) {
          const d = delta[s * outputs + o] / (l == net.layers.length - 1 ? n : 1), w = o * inputs, at = s * inputs
          if (d === 0) continue
          db[o] += d
          add(dW, w, d, x, at, inputs)
          if (l) add(before, at, d, W, w, inputs)
        }
      for (let i = 0; i < before.length; i++) if (x[i] === 0) before[i] = 0
      delta = before
    }
    return loss
  }

  // X X^T of X [m, n] as [m, wide], each row filled up with zeros to a multiple of four
  function gram(X, m, n) {
    const wide = 4 * Math.ceil(m / 4), A = new Float64Array(m * wide)
    for (let k = 0; k < m; k++) for (let l = 0; l <= k; l++) A[k * wide + l] = A[l * wide + k] = product(X, k * n, X, l * n, n)
    return A
  }

  // Muon's step for G [m, n], m <= n: five of Newton's and Schulz's towards the nearest matrix with orthonormal rows, as
  // torch.optim.Muon takes them, but in float64.
  function orthonormal(G, m, n) {
    const size = Math.max(Math.sqrt(product(G, 0, G, 0, m * n)), 1e-7), wide = 4 * Math.ceil(m / 4)
    let X = G.map(x => x / size)
    for (let i = 0; i < 5; i++) {
      const A = gram(X, m, n), B = gram(A, m, wide), next = X.map(x => 3.4445 * x)
      for (let k = 0; k < m; k++) for (let l = 0; l < m; l++) add(next, k * n, 2.0315 * B[k * wide + l] - 4.775 * A[k * wide + l], X, l * n, n)
      X = next
    }
    return X
  }

  // One step; `rule` is sgd, adam, signum or muon, which leaves the biases to adam. The exact law of NC0 goes with it: of SGD's or SGDW's row sum.
  function step(net, {rule, lr, momentum, coupled_wd, decoupled_wd, batch}, rows = draw(net, batch)) {
    if (rule != net.rule) { // another rule's moving averages mean something else
      net.first.fill(0)
      net.second.fill(0)
      net.t = 0
      net.rule = rule
      net.law = {s: rowSum(net), v: 0}
    }
    const loss = backward(net, rows), {params, grads, first, second, law} = net, keep = 1 - lr * decoupled_wd
    net.t++
    net.step++
    const unbias = 1 - momentum ** net.t, root = Math.sqrt(1 - ADAM.beta2 ** net.t)
    for (let i = 0; i < params.length; i++) {
      params[i] *= keep
      const g = grads[i] + coupled_wd * params[i]
      if (rule == "sgd") {
        first[i] = momentum * first[i] + g
        params[i] -= lr * first[i]
        continue
      }
      first[i] = momentum * first[i] + (1 - momentum) * g
      if (rule == "signum") params[i] -= lr * Math.sign(first[i])
      else if (rule == "muon" && net.matrix[i]) grads[i] = (1 - momentum) * g + momentum * first[i] // Nesterov's
      else {
        second[i] = ADAM.beta2 * second[i] + (1 - ADAM.beta2) * g * g
        params[i] -= ((lr / unbias) * first[i]) / (Math.sqrt(second[i]) / root + ADAM.eps)
      }
    }
    if (rule == "muon") // no W is taller than wide, so that the learning rate is as it stands
      for (const {W, dW, inputs, outputs} of net.layers) add(W, 0, -lr, orthonormal(dW, outputs, inputs), 0, W.length)
    law.s *= keep
    law.v = momentum * law.v + coupled_wd * law.s
    law.s -= lr * law.v
    return loss
  }

  // Rows of A turned in pairs until they are orthogonal (one-sided Jacobi): returns R and S V^T with R A = S V^T.
  function orthogonal(A) {
    const rows = A.map(row => [...row]), R = A.map((_, i) => A.map((_, j) => +(i == j)))
    for (let sweep = 0, off = 1; sweep < 40 && off > 1e-15; sweep++) {
      off = 0
      for (let i = 0; i < rows.length; i++)
        for (let j = i + 1; j < rows.length; j++) {
          const a = dot(rows[i], rows[i]), b = dot(rows[j], rows[j]), c = dot(rows[i], rows[j])
          if (Math.abs(c) <= 1e-16 * Math.sqrt(a * b)) continue
          off = Math.max(off, Math.abs(c) / Math.sqrt(a * b))
          const zeta = (b - a) / (2 * c), t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta))
          const cosine = 1 / Math.hypot(1, t), sine = cosine * t
          for (const M of [rows, R]) {
            const [p, q] = [M[i], M[j]]
            M[i] = p.map((x, k) => cosine * x - sine * q[k])
            M[j] = p.map((x, k) => sine * x + cosine * q[k])
          }
        }
    }
    return {R, rows}
  }

  const dot = (a, b) => { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum }
  const norm = A => Math.sqrt(A.reduce((sum, row) => sum + dot(row, row), 0)), unit = (A, n = norm(A)) => A.map(row => row.map(x => x / n))
  const distance = (A, B) => Math.hypot(...A.flatMap((r, i) => r.map((x, j) => x - B[i][j])))

  // Loss, accuracy, NC0 to NC3 over all images as in `ncutils.metrics`; and M^T, W, W_c in the coordinates of the simplex.
  function measure(net) {
    const {labels, images} = net, {W, inputs: p, outputs: K} = head(net), n = labels.length
    const outs = forward(net, images, n), logits = outs.pop(), h = outs.pop(), counts = Array(K).fill(0)
    const means = Array.from({length: K}, () => Array(p).fill(0)), predicted = logits.slice()
    labels.forEach((label, s) => {
      counts[label]++
      for (let i = 0; i < p; i++) means[label][i] += h[s * p + i]
    })
    means.forEach((m, k) => m.forEach((x, i) => { m[i] = x / counts[k] }))
    const centre = means[0].map((_, i) => means.reduce((sum, m) => sum + m[i], 0) / K)
    const M = means.map(m => m.map((x, i) => x - centre[i])), E = simplex(K)
    // E's columns span what the rows of M^T, which sum to zero, span
    const {R, rows} = orthogonal(E[0].map((_, j) => centre.map((_, i) => E.reduce((s, e, k) => s + e[j] * M[k][i], 0))))
    const scale = norm(means)
    const kept = rows.flatMap((row, r) => (Math.sqrt(dot(row, row)) > 4 * 2 ** -52 * scale ? [r] : []))
    let nc1 = kept.length ? 0 : NaN
    labels.forEach((label, s) => {
      const d = means[label].map((m, i) => h[s * p + i] - m)
      for (const r of kept) nc1 += (dot(rows[r], d) / dot(rows[r], rows[r])) ** 2 / n
    })
    const weights = M.map((_, k) => [...W.subarray(k * p, (k + 1) * p)]), mean = rowMean(head(net))
    const centred = weights.map(w => w.map((x, i) => x - mean[i])), target = M.map((_, k) => M.map((_, l) => ((k == l) - 1 / K) / Math.sqrt(K - 1)))
    const [loss, accuracy] = softmax(predicted, labels, K)
    // the largest change of a probability when the gauge is fixed
    let moved = 0
    for (let s = 0; s < n; s++) {
      const shift = mean.reduce((sum, x, i) => sum + x * h[s * p + i], 0)
      for (let k = 0; k < K; k++) logits[s * K + k] -= shift
    }
    softmax(logits, labels, K)
    logits.forEach((x, i) => { moved = Math.max(moved, Math.abs(x - predicted[i])) })
    // the rotation that brings the means closest to the simplex, then all rows in it
    const axes = E[0].map((_, j) => centre.map((_, i) => kept.reduce((s, r) => s + (R[r][j] * rows[r][i]) / Math.sqrt(dot(rows[r], rows[r])), 0)))
    const place = (A, norm) => A.map(row => axes.slice(0, K == 4 ? 3 : 2).map(axis => dot(row, axis) / norm))
    return {
      step: net.step, loss, accuracy, nc0: rowSum(net), law: Math.abs(net.law.s), nc1, moved,
      nc2: distance(unit(M.map(a => M.map(b => dot(a, b)))), target),
      nc3: distance(unit(weights), unit(M)), nc3c: distance(unit(centred), unit(M)),
      largest: Math.max(...W.map(Math.abs)),
      // W = W_c + 1 w^T: its rows in the simplex's coordinates, and how far the mean row w lifts them out
      means: place(M, norm(M)), weights: place(centred, norm(weights)), centred: place(centred, norm(centred)), lift: Math.hypot(...mean) / norm(weights),
    }
  }

  return {create, step, draw, measure, simplex}
}
