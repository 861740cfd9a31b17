// Two networks side by side, a and b, and the last layer of each
const SIDES = ["a", "b"], COLOUR = {a: "var(--nc-a)", b: "var(--nc-b)"}, DASH = {a: "none", b: "7 3"}
const CLASS = ["#0173b2", "#b87503", "#02855f", "#d55e00", "#b35fa3", "#8c564b", "#2f8fc4", "#7a7a7a", "#8a8200", "#7d6bd6"]

// The simplex's plane seen from above at an angle: its corners, the class means, and the rows of W, which the mean row lifts out of
// the plane. `fixed` from 0 to 1 leads from W to W_c. Four classes fill three dimensions: their tetrahedron turns.
function geometry(el, corners) {
  const box = node("div", {class: "nc-picture"}), K = corners.length
  const edges = corners.flatMap((_, i) => corners.flatMap((_, j) => (i < j && (K < 5 || j - i == 1 || j - i == K - 1) ? [[i, j]] : [])))
  const radius = Math.hypot(...corners[0].slice(0, K == 4 ? 3 : 2)), [tilt, up] = K == 4 ? [0.95, 0.95] : [0.66, 0.75]
  let angle = 0.5, last
  el.replaceChildren(box)
  const flat = ([x, y, z = 0]) => [x * Math.cos(angle) + z * Math.sin(angle), tilt * y + 0.3 * (z * Math.cos(angle) - x * Math.sin(angle))]
  const draw = (found, fixed, name) => {
    last = [found, fixed, name]
    const width = box.clientWidth || 200, height = (K == 4 ? 1 : 0.85) * width, scale = width / (2.7 * radius), lift = (1 - fixed) * found.lift
    const at = (point, lifted = 0) => {
      const [x, y] = K == 4 ? flat(point) : [point[0], tilt * point[1]]
      return [width / 2 + scale * x, (K == 4 ? 0.5 : 0.62) * height - scale * (y + up * lifted)]
    }
    const svg = node("svg", {width, height, role: "img", "aria-label": name})
    const line = (from, to, more) => svg.append(node("line", {x1: from[0], y1: from[1], x2: to[0], y2: to[1], ...more}))
    for (const [i, j] of edges) line(at(corners[i]), at(corners[j]), {class: "nc-edge"})
    for (const corner of corners) {
      const [cx, cy] = at(corner)
      svg.append(node("ellipse", {cx, cy, rx: 0.14 * radius * scale, ry: 0.14 * radius * scale * tilt, class: "nc-corner"}))
    }
    const centre = at([0, 0, 0], lift)
    line(at([0, 0, 0]), centre, {class: "nc-mean"})
    found.means.forEach((mean, k) => {
      const row = found.weights[k].map((x, i) => x + fixed * (found.centred[k][i] - x)), [x, y] = at(row, lift), [cx, cy] = at(mean)
      svg.append(node("circle", {cx, cy, r: 7, fill: CLASS[k], class: "nc-tip"}))
      line(centre, [x, y], {stroke: CLASS[k], "stroke-width": 3})
      svg.append(node("path", {d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z`, fill: CLASS[k], class: "nc-tip"}))
    })
    box.replaceChildren(svg)
  }
  const turn = by => {
    angle += by
    if (last) draw(...last)
  }
  if (K == 4) {
    box.tabIndex = 0
    box.setAttribute("aria-label", "tetrahedron; the left and right arrow keys turn it")
    box.onkeydown = event => { if (/Arrow(Left|Right)/.test(event.key)) turn(event.key == "ArrowLeft" ? -0.15 : 0.15) }
    box.onpointermove = event => { if (event.buttons) turn(event.movementX / 60) }
  }
  new ResizeObserver(() => turn(0)).observe(box)
  return {draw, turn: K == 4 ? turn : () => {}}
}
