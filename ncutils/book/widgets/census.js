// What the theorem says of each optimizer beside its measured leaks: a table to sort, search and filter.
const CLASSES = ["keeps", "exact", "scales", "breaks", "second copy", "untried"]
const leak = v => (v === null ? "–" : v === 0 ? "0" : v.toExponential(1).replace("e+", "e"))

// Rows of the class `says` ("all": every one) in which each word of `search` stands somewhere, in order; those without a value last.
function chosen(rows, {says, search, sort, descending}) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean), rank = v => (sort == "theory" ? CLASSES.indexOf(v) : typeof v == "string" ? v.toLowerCase() : v)
  const text = row => `${row.rule} ${row.theory} ${row.why} ${row.why_not}`.toLowerCase()
  const compare = ({[sort]: a}, {[sort]: b}) => {
    if (a === null || b === null) return (a === null) - (b === null)
    const order = rank(a) < rank(b) ? -1 : +(rank(a) > rank(b))
    return descending ? -order : order
  }
  return rows.filter(row => (says == "all" || row.theory == says) && words.every(word => text(row).includes(word))).sort(compare)
}

function render({model, el}) {
  const {root, names} = start(model, el), columns = model.get("controls").find(spec => spec.name == "sort"), rows = model.get("rows")
  const put = values => save(model, values)
  const turn = node("button", {type: "button"}), told = node("span", {role: "status"})
  turn.onclick = () => put({descending: !model.get("descending")})
  // a second click on a column turns its order; where there is no room for the heads, menu and button do the same
  const heads = columns.options.map((name, i) => {
    const button = node("button", {type: "button"}, columns.titles[i])
    button.onclick = () => put(model.get("sort") == name ? {descending: !model.get("descending")} : {sort: name, descending: false})
    return node("th", {role: "columnheader", scope: "col"}, button)
  })
  const cell = (row, name, i) => {
    if (name == "rule") return node("th", {role: "rowheader", scope: "row"}, node("code", {}, row.rule))
    if (name == "why") return node("td", {role: "cell", class: "nc-why"}, row.why, ...(row.why_not ? [" (not measured: ", node("code", {}, row.why_not), ")"] : []))
    if (name == "theory") return node("td", {role: "cell"}, node("span", {class: "nc-class", "data-class": row.theory}, row.theory))
    return node("td", {role: "cell", class: "nc-leak", "data-label": columns.titles[i]}, leak(row[name]))
  }
  const lines = new Map(rows.map(row => [row, node("tr", {role: "row"}, ...columns.options.map((name, i) => cell(row, name, i)))]))
  const body = node("tbody", {role: "rowgroup"})
  const head = node("thead", {role: "rowgroup"}, node("tr", {role: "row"}, ...heads))
  const frame = node("div", {class: "nc-scroll", role: "region", "aria-label": "the census", tabindex: 0}, node("table", {role: "table", class: "nc-census"}, head, body))
  root.append(node("div", {class: "nc-tools"}, turn, told), frame)

  const show = () => {
    const [says, search, sort, descending] = ["says", "search", "sort", "descending"].map(name => model.get(name))
    const found = chosen(rows, {says, search, sort, descending}), at = columns.options.indexOf(sort)
    body.replaceChildren(...found.map(row => lines.get(row)))
    heads.forEach((th, i) => th.setAttribute("aria-sort", i != at ? "none" : descending ? "descending" : "ascending"))
    turn.textContent = descending ? "↓ descending" : "↑ ascending"
    told.textContent = `${found.length} of ${rows.length} rules`
    frame.scrollTop = 0
    put({shown: found.map(row => row.rule)})
  }
  address(model, "census", [...names, "descending"], root)
  for (const name of [...names, "descending"]) model.on(`change:${name}`, show)
  show()
}

export {chosen}
export default {render}
