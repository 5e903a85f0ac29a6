"use strict";
// Draws the interactive charts of report.html from the numbers in #data. Texts become text nodes, never markup.
// A section that cannot be drawn keeps its plots and tables for pages without JavaScript.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const style = (i) => ({ colour: data.styles[i][0], dash: data.styles[i][1] });
  const name = (i) => data.names[i];

  // ---- elements

  function element(space, tag, attributes, children) {
    const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }
  const html = (tag, attributes, ...children) => element(null, tag, attributes, children);
  const svg = (tag, attributes, ...children) => element("http://www.w3.org/2000/svg", tag, attributes, children);

  const number = (v) => (v === null || v === undefined || !isFinite(v) ? "–" : Math.abs(v) < 100 ? v.toFixed(3) : v.toFixed(0));
  const signed = (v) => (v < 0 ? "−" : "+") + number(Math.abs(v));
  const percent = (v) => `${v < 1 && v > 0.995 ? "over 99" : Math.round(100 * v)}\u00a0%`;
  const share = (v) => (v > 0 && v < 0.005 ? "less than 1\u00a0%" : percent(v));
  const listed = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);

  function swatch(i) {
    const { colour, dash } = style(i);
    const line = svg("line", { x1: 1, y1: 6, x2: 29, y2: 6, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash || null });
    return svg("svg", { class: "swatch", viewBox: "0 0 30 12", "aria-hidden": "true" }, line);
  }

  // Areas differ by colour and hatching.
  function patterns() {
    const strokes = ["M0 4h8", "M-2 2l4-4M0 8l8-8M6 10l4-4", "", "M4 0v8", "M-2 6l4 4M0 0l8 8M6-2l4 4", "M0 4h8M4 0v8"];
    const defs = data.styles.map(([colour], i) =>
      svg("pattern", { id: `fill-${i}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
        svg("rect", { width: 8, height: 8, fill: colour }),
        svg("path", { d: strokes[(i + Math.floor(i / 6)) % 6], stroke: "#fff", "stroke-opacity": 0.55, "stroke-width": 1.2 })));
    return svg("svg", { width: 0, height: 0, "aria-hidden": "true", class: "defs" }, svg("defs", {}, ...defs));
  }
  const fill = (i) => `url(#fill-${i})`;

  // ---- axes

  function ticks(low, high, about) {
    const raw = (high - low) / about || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toFixed(10));
    return found;
  }

  // A range around values; values that differ only by rounding count as equal.
  function around(values) {
    const low = Math.min(...values), high = Math.max(...values), size = Math.max(Math.abs(low), Math.abs(high), 1);
    const pad = high - low > 1e-6 * size ? (high - low) * 0.06 : size * 0.1;
    return [low - pad, high + pad];
  }

  function logTicks(low, high) {
    const found = [];
    for (let p = 1; p <= high; p *= 10) found.push(...[p, 2 * p, 5 * p].filter((v) => v >= low && v <= high));
    return found;
  }

  // An empty plot: the SVG, and functions from values to pixels.
  function axes(width, height, { x, y, xLabel, yLabel, log, title }) {
    const box = { left: yLabel ? 60 : 44, right: width - 16, top: 10, bottom: height - 38 };
    const along = log ? Math.log : (v) => v;
    const X = (v) => box.left + ((along(v) - along(x[0])) / (along(x[1]) - along(x[0]) || 1)) * (box.right - box.left);
    const Y = (v) => box.bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (box.bottom - box.top);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title });
    const grid = svg("g", { class: "grid" });
    const labels = svg("g", { class: "ticks" });
    for (const v of ticks(y[0], y[1], Math.max(4, height / 60))) {
      grid.append(svg("line", { x1: box.left, x2: box.right, y1: Y(v), y2: Y(v) }));
      labels.append(svg("text", { x: box.left - 6, y: Y(v) + 4, "text-anchor": "end" }, String(v)));
    }
    for (const v of log ? logTicks(x[0], x[1]) : ticks(x[0], x[1], Math.max(3, width / 90))) {
      grid.append(svg("line", { x1: X(v), x2: X(v), y1: box.top, y2: box.bottom }));
      labels.append(svg("text", { x: X(v), y: box.bottom + 16, "text-anchor": "middle" }, String(v)));
    }
    labels.append(svg("text", { x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle", class: "axis" }, xLabel));
    if (yLabel) {
      labels.append(svg("text", { x: 12, y: (box.top + box.bottom) / 2, "text-anchor": "middle", class: "axis",
        transform: `rotate(-90 12 ${(box.top + box.bottom) / 2})` }, yLabel));
    }
    root.append(grid, labels, svg("path", { class: "frame", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
    return { root, X, Y, box };
  }

  const known = (v) => v !== null && v !== undefined;
  function path(plot, xs, ys) {
    let text = "", pen = "M";
    xs.forEach((x, i) => {
      if (!known(ys[i])) { pen = "M"; return; }
      text += `${pen}${plot.X(x).toFixed(1)} ${plot.Y(ys[i]).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }

  function line(plot, i, xs, ys, extra) {
    const { colour, dash } = style(i);
    return svg("path", { d: path(plot, xs, ys), fill: "none", stroke: colour, "stroke-width": 2.4, "stroke-dasharray": dash || null, ...extra });
  }

  // Redraw when the available width changes.
  function sized(holder, draw) {
    let width = 0;
    new ResizeObserver(() => {
      const now = Math.floor(holder.clientWidth);
      if (now && now !== width) draw((width = now));
    }).observe(holder);
    return () => width && draw(width);
  }

  // ---- curves: best@k and pass@k, solved against budget, training

  function running(values) {
    const half = Math.floor(values.length / 20);
    return values.map((_, i) => {
      const part = values.slice(Math.max(0, i - half), i + half + 1);
      return part.reduce((a, b) => a + b) / part.length;
    });
  }

  function curves(root, id) {
    const { panels, unit } = data.charts[id];
    const shared = id === "search"; // the panels show the same measure
    const xs = [...new Set(panels.flatMap((p) => p.series.flatMap((s) => s.x)))].sort((a, b) => a - b);
    const policies = [...new Set(panels.flatMap((p) => p.series.map((s) => s.of)))].sort((a, b) => a - b);
    const hidden = new Set();
    let at = xs.length - 1, log = unit !== "step" && xs[0] > 0 && xs.at(-1) / xs[0] > 50;

    for (const panel of panels) {
      for (const s of panel.series) s.line = panel.smooth ? running(s.mean) : s.mean;
    }
    const here = (s) => { // the last point at or before the cursor
      let i = s.x.length - 1;
      while (i > 0 && s.x[i] > xs[at]) i--;
      return s.x[i] <= xs[at] ? i : -1;
    };

    const slider = html("input", { type: "range", min: 0, max: xs.length - 1, value: at, "aria-label": unit });
    const shownAt = html("output", {});
    const controls = html("div", { class: "controls" }, html("label", {}, `${unit} = `, shownAt, slider));
    if (unit !== "step" && xs[0] > 0 && xs.length > 3) {
      const box = html("input", { type: "checkbox", checked: log });
      box.addEventListener("change", () => { log = box.checked; refresh(); });
      controls.append(html("label", {}, box, ` logarithmic ${unit}`));
    }
    const head = html("tr", {}, html("th", { scope: "col" }, "show"), ...panels.map((p) => html("th", { scope: "col" }, p.label)));
    const body = html("tbody", {});
    const cells = policies.map((i) => {
      const button = html("button", { type: "button", class: "toggle", "aria-pressed": "true" }, swatch(i), name(i));
      button.addEventListener("click", () => {
        if (!hidden.delete(i)) hidden.add(i);
        button.setAttribute("aria-pressed", String(!hidden.has(i)));
        refresh();
      });
      const values = panels.map(() => html("td", {}));
      body.append(html("tr", {}, html("th", { scope: "row" }, button), ...values));
      return values;
    });
    const limits = panels.some((p) => known(p.ceiling));
    if (limits) body.append(html("tr", {}, html("th", { scope: "row", class: "soft" }, "ceiling"), ...panels.map((p) => html("td", {}, known(p.ceiling) ? number(p.ceiling) : ""))));
    const legend = html("div", { class: "scroll" }, html("table", { class: "legend" }, html("thead", {}, head), body));
    const grid = html("div", { class: panels.length > 2 ? "plots small" : "plots" });
    const redraws = panels.map((panel) => {
      const holder = html("div", { class: "chart" });
      grid.append(html("figure", {}, html("figcaption", {}, panel.label), holder));
      return sized(holder, (width) => draw(panel, holder, width));
    });

    function range() {
      const of = (panel) => panel.series.filter((s) => !hidden.has(s.of) || hidden.size === policies.length)
        .flatMap((s) => [...s.line, ...(s.low || []), ...(s.high || []), ...(panel.smooth ? s.mean : [])]).concat(panel.ceiling ?? []).filter(known);
      return (panel) => {
        const values = shared ? panels.flatMap(of) : of(panel);
        const [low, high] = around(values);
        return [Math.min(...values) >= 0 ? Math.max(0, low) : low, high];
      };
    }

    function draw(panel, holder, width) {
      const x = xs.length > 1 ? [xs[0], xs.at(-1)] : [xs[0] - 0.5, xs[0] + 0.5];
      const plot = axes(width, Math.max(210, Math.min(340, width * 0.62)), {
        x, y: range()(panel), log: log && xs.length > 1, xLabel: { k: data.matched ? `k, in units of ${data.matched} tokens` : "k, candidates searched", budget: "budget, candidates", step: "training step" }[unit],
        yLabel: shared ? "solved prompts" : null, title: `${panel.label} against ${unit}; the table above has the values at the slider`,
      });
      if (known(panel.ceiling)) plot.root.append(svg("line", { class: "ceiling", x1: plot.box.left, x2: plot.box.right, y1: plot.Y(panel.ceiling), y2: plot.Y(panel.ceiling) }));
      plot.root.append(svg("line", { class: "cursor", x1: plot.X(xs[at]), x2: plot.X(xs[at]), y1: plot.box.top, y2: plot.box.bottom }));
      for (const s of panel.series.filter((s) => !hidden.has(s.of))) {
        if (s.low && known(s.low[0])) {
          const back = path(plot, [...s.x].reverse(), [...s.low].reverse()).replace("M", "L");
          plot.root.append(svg("path", { d: path(plot, s.x, s.high) + back + "Z", fill: style(s.of).colour, "fill-opacity": 0.14, class: "band" }));
        }
        if (panel.smooth) plot.root.append(line(plot, s.of, s.x, s.mean, { "stroke-width": 1, "stroke-opacity": 0.4, "stroke-dasharray": null }));
        plot.root.append(line(plot, s.of, s.x, s.line, { class: "curve" }));
        const i = here(s);
        if (i >= 0 && known(s.line[i])) plot.root.append(svg("circle", { class: "dot", cx: plot.X(s.x[i]), cy: plot.Y(s.line[i]), r: 4, fill: style(s.of).colour }));
      }
      const point = (event) => {
        const px = event.clientX - plot.root.getBoundingClientRect().left;
        let nearest = 0;
        xs.forEach((v, i) => { if (Math.abs(plot.X(v) - px) < Math.abs(plot.X(xs[nearest]) - px)) nearest = i; });
        if (nearest !== at) { at = nearest; slider.value = at; refresh(); }
      };
      plot.root.addEventListener("pointermove", point);
      plot.root.addEventListener("pointerdown", point);
      holder.replaceChildren(plot.root);
    }

    function refresh() {
      shownAt.textContent = xs[at];
      const said = [];
      policies.forEach((i, row) => panels.forEach((panel, column) => {
        const s = panel.series.find((s) => s.of === i);
        const index = s ? here(s) : -1;
        const cell = cells[row][column];
        cell.replaceChildren(index < 0 ? "–" : number(s.line[index]));
        if (index >= 0 && s.low && known(s.low[index])) cell.append(html("small", {}, `${number(s.low[index])} to ${number(s.high[index])}`));
        if (index >= 0 && column === 0) said.push(`${name(i)} ${number(s.line[index])}`);
      }));
      slider.setAttribute("aria-valuetext", `${unit} ${xs[at]}: ${said.join(", ")}`);
      redraws.forEach((redraw) => redraw());
    }
    slider.addEventListener("input", () => { at = +slider.value; refresh(); });
    root.replaceChildren(controls, legend, grid);
    refresh();
  }

  // ---- weights: which policy wins where

  // The fronts of one policy, flat: starts[p] to starts[p + 1] are the vectors of prompt p; missing objectives are 0.
  function flat(front, k) {
    const starts = [0], values = [], present = [];
    for (const found of front.prompts) {
      const vectors = found.length ? found : [Array(k).fill(0)]; // no candidates count as one missing candidate
      for (const vector of vectors) for (let o = 0; o < k; o++) values.push(vector[o] ?? 0);
      present.push(Array.from({ length: k }, (_, o) => known(vectors[0][o])));
      starts.push(values.length / k);
    }
    return { of: front.of, starts, values: Float64Array.from(values), present, ragged: present.some((p) => p.includes(false)) };
  }

  // Each prompt's exact maximum of w·r over its front; NaN for a prompt without the weighted objectives.
  function worth({ starts, values, present, ragged }, w) {
    const k = w.length, found = new Float64Array(starts.length - 1);
    for (let p = 0; p < found.length; p++) {
      let best = -Infinity;
      for (let s = starts[p]; s < starts[p + 1]; s++) {
        let dot = 0;
        for (let o = 0; o < k; o++) dot += w[o] * values[s * k + o];
        if (dot > best) best = dot;
      }
      found[p] = ragged ? best / w.reduce((sum, v, o) => sum + (present[p][o] ? v : 0), 0) : best;
    }
    return found;
  }

  // Mean of the finite values, and half the width of its 95 % interval (normal).
  function mean(values) {
    let n = 0, sum = 0, squares = 0;
    for (const v of values) if (isFinite(v)) { n++; sum += v; squares += v * v; }
    const m = sum / n;
    return { mean: n ? m : NaN, half: n > 1 ? 1.96 * Math.sqrt(Math.max(0, squares / n - m * m) / (n - 1)) : Infinity };
  }

  // The policies under a weighting: means, order, lead of the first, and whether it is beyond chance (paired).
  function compare(fronts, w) {
    const values = fronts.map((front) => worth(front, w));
    const means = values.map(mean);
    const order = means.map((_, i) => i).sort((a, b) => means[b].mean - means[a].mean);
    const lead = order.length > 1 ? mean(values[order[0]].map((v, p) => v - values[order[1]][p])) : { mean: 0, half: Infinity };
    return { means, order, lead, clear: lead.mean > lead.half && lead.mean > 1e-9 };
  }

  // n weightings that cover the simplex evenly: a Kronecker sequence, sorted, and the gaps between its coordinates.
  function coverSimplex(k, n) {
    let phi = 2;
    for (let i = 0; i < 50; i++) phi = (1 + phi) ** (1 / k);
    return Array.from({ length: n }, (_, i) => {
      const cuts = Array.from({ length: k - 1 }, (_, d) => ((i + 1) * phi ** -(d + 1)) % 1).sort((a, b) => a - b);
      return [...cuts, 1].map((cut, d) => cut - (d ? cuts[d - 1] : 0));
    });
  }

  function weights(root) {
    const k = data.objectives.length;
    const fronts = data.fronts.map((front) => flat(front, k));
    const cost = fronts.reduce((sum, front) => sum + front.values.length, 0); // products per weighting
    const afford = (least, most, products) => Math.max(least, Math.min(most, Math.floor(products / Math.max(cost, 1))));
    const total = (list) => list.reduce((a, b) => a + b, 0);
    const halfway = (values) => values.map((v) => v / Math.max(...values) / 2); // leaves the sliders room to go up
    let raw = halfway(data.weights);
    let w = data.weights;

    // controls
    const inputs = data.objectives.map((objective, i) => {
      const input = html("input", { type: "range", min: 0, max: 100, step: 1, id: `weight-${i}` });
      input.addEventListener("input", () => { raw[i] = +input.value / 100; refresh(); });
      return input;
    });
    const outputs = data.objectives.map((_, i) => html("output", { for: `weight-${i}` }));
    const sliders = html("div", { class: "sliders" }, ...data.objectives.map((objective, i) =>
      html("div", {}, html("label", { for: `weight-${i}` }, ...soft(objective)), inputs[i], outputs[i])));
    const presets = [["deployment weights", halfway(data.weights)], ["equal weights", halfway(data.weights.map(() => 1))]];
    const buttons = html("div", { class: "controls" }, ...presets.map(([label, values]) => {
      const button = html("button", { type: "button" }, label);
      button.addEventListener("click", () => { raw = [...values]; refresh(); });
      return button;
    }));
    const verdict = html("p", { class: "verdict", "aria-live": "polite" });
    const rows = fronts.map((front) => {
      const bar = html("span", { class: "fill" }), whisker = html("span", { class: "whisker" }), value = html("span", { class: "value" });
      bar.style.background = style(front.of).colour;
      return { bar, whisker, value, row: html("li", {}, html("span", { class: "who" }, swatch(front.of), ...soft(name(front.of))), html("span", { class: "track" }, bar, whisker), value) };
    });
    const scale = html("span", { class: "scale" });
    const barList = html("ul", { class: "bars" }, ...rows.map(({ row }) => row), html("li", { "aria-hidden": "true" }, html("span", {}), scale, html("span", {})));

    // all weightings
    const draws = k > 1 ? coverSimplex(k, afford(100, 1000, 1.5e7)) : [[1]];
    const won = fronts.map(() => ({ clear: 0, all: 0 }));
    for (const draw of draws) {
      const { order, clear } = compare(fronts, draw);
      won[order[0]].all++;
      if (clear) won[order[0]].clear++;
    }
    const shares = fronts.map((_, i) => i).filter((i) => won[i].all).sort((a, b) => won[b].all - won[a].all);
    const overall = html("p", {}, `Over ${draws.length.toLocaleString("en")} evenly spread weightings, ${listed(shares.map((i) => `${name(fronts[i].of)} is best on ${share(won[i].all / draws.length)}`
      + (won[i].clear < won[i].all ? ` (beyond chance on ${share(won[i].clear / draws.length)})` : "")))}.`);

    const pictures = html("div", { class: "plots small" });
    const redraws = [];
    const figures = html("div", {}); // beside the sliders
    if (k === 3) redraws.push(ternary());
    if (k > 1) for (let i = 0; i < (k === 2 ? 1 : k); i++) redraws.push(axis(i));

    function set(values) { // to weights chosen in a plot
      raw = halfway(values);
      refresh();
    }

    // One objective's weight from 0 to 1; the others keep their proportions.
    function axis(objective) {
      const holder = html("div", { class: "chart" });
      pictures.append(html("figure", { class: "axis-picture" }, html("figcaption", {}, `more or less ${data.objectives[objective]}`), holder));
      const draw = (width) => {
        const points = afford(11, 61, 6e6 / k), others = total(w) - w[objective];
        const xs = Array.from({ length: points }, (_, i) => i / (points - 1));
        const at = (x) => w.map((v, o) => (o === objective ? x : (1 - x) * (others > 1e-9 ? v / others : 1 / (k - 1))));
        const found = xs.map((x) => compare(fronts, at(x)));
        const values = found.flatMap((f) => f.means.map((m) => m.mean)).filter(isFinite);
        const [low, high] = around(values);
        const plot = axes(width, Math.max(200, Math.min(260, width * 0.75)), {
          x: [0, 1], y: [low - (high - low) * 0.12, high], xLabel: `weight of ${data.objectives[objective]}`,
          title: `Worth of each policy against the weight of ${data.objectives[objective]}: ${stretches(found, xs)}`,
        });
        const strip = { y: plot.box.bottom - 14, height: 14 };
        segments(found).forEach(({ from, to, winner, clear }) => {
          const left = plot.X(Math.max(0, (from - 0.5) / (points - 1))), right = plot.X(Math.min(1, (to + 0.5) / (points - 1)));
          plot.root.append(svg("rect", { class: "region", "data-winner": name(fronts[winner].of), x: left, width: Math.max(0, right - left), ...strip,
            fill: fill(fronts[winner].of), "fill-opacity": clear ? 1 : 0.35 }));
        });
        fronts.forEach((front, i) => plot.root.append(line(plot, front.of, xs, found.map((f) => f.means[i].mean), { "stroke-width": 2 })));
        plot.root.append(svg("line", { class: "cursor", x1: plot.X(w[objective]), x2: plot.X(w[objective]), y1: plot.box.top, y2: plot.box.bottom }));
        plot.root.addEventListener("click", (event) => {
          const px = event.clientX - plot.root.getBoundingClientRect().left;
          set(at(Math.min(1, Math.max(0, (px - plot.box.left) / (plot.box.right - plot.box.left)))));
        });
        holder.replaceChildren(plot.root);
      };
      return sized(holder, draw);
    }

    function segments(found) {
      const list = [];
      found.forEach(({ order, clear }, i) => {
        const last = list.at(-1);
        if (last && last.winner === order[0] && last.clear === clear) last.to = i;
        else list.push({ from: i, to: i, winner: order[0], clear });
      });
      return list;
    }
    const stretches = (found, xs) => segments(found).map(({ from, to, winner, clear }) =>
      `${name(fronts[winner].of)} ${clear ? "wins" : "is ahead within chance"} from ${xs[from].toFixed(2)} to ${xs[to].toFixed(2)}`).join(", ");

    // Three objectives: the whole simplex, computed once; the corners are the objectives.
    function ternary() {
      const holder = html("div", { class: "chart" });
      figures.append(html("figure", { class: "ternary" }, html("figcaption", {}, "all weightings; click to choose one"), holder));
      const n = Math.max(8, Math.min(36, Math.floor(Math.sqrt(4e7 / Math.max(cost, 1)))));
      const cells = [];
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < n - i; j++) {
          cells.push([[i, j], [i + 1, j], [i, j + 1]]);
          if (i + j < n - 1) cells.push([[i + 1, j], [i, j + 1], [i + 1, j + 1]]);
        }
      }
      const groups = new Map(); // cells by winner, with a clear lead or within chance
      for (const corners of cells) {
        const middle = [0, 1].map((d) => total(corners.map((c) => c[d])) / 3 / n);
        const { order, clear } = compare(fronts, [middle[0], middle[1], 1 - middle[0] - middle[1]]);
        const key = `${order[0]} ${clear}`;
        if (!groups.has(key)) groups.set(key, { winner: order[0], clear, cells: [], sum: [0, 0] });
        const group = groups.get(key);
        group.cells.push(corners);
        group.sum = group.sum.map((v, d) => v + middle[d]);
      }
      return sized(holder, (width) => {
        const size = Math.min(width, 460), side = size - 60, tall = side * Math.sqrt(0.75), left = (width - side) / 2, top = 26;
        const place = (a, b) => [left + side * (1 - a - b) * 1 + side * a * 0.5, top + tall * (1 - a)]; // a at the top, b on the left, the rest on the right
        const root = svg("svg", { viewBox: `0 0 ${width} ${tall + 66}`, width, height: tall + 66, role: "img",
          "aria-label": `Which policy is best at each weighting: ${listed(shares.map((i) => `${name(fronts[i].of)} on ${percent(won[i].all / draws.length)}`))}` });
        for (const { winner, clear, cells } of groups.values()) {
          const d = cells.map((corners) => `M${corners.map(([i, j]) => place(i / n, j / n).map((v) => v.toFixed(1)).join(" ")).join("L")}Z`).join("");
          root.append(svg("path", { class: "region", "data-winner": name(fronts[winner].of), d, fill: fill(fronts[winner].of), "fill-opacity": clear ? 1 : 0.35 }));
        }
        for (const { winner, clear, cells, sum } of groups.values()) {
          if (cells.length < n * n * 0.04) continue;
          const [x, y] = place(sum[0] / cells.length, sum[1] / cells.length);
          root.append(svg("text", { x, y: y - 14, "text-anchor": "middle", class: "on-region" }, name(fronts[winner].of) + (clear ? "" : " ?")));
        }
        const at = place(w[0], w[1]);
        root.append(svg("circle", { class: "here", cx: at[0], cy: at[1], r: 7 }));
        holder.replaceChildren(root); // only what is on the page has a text length
        const ends = [[1, 0, -8], [0, 1, 20], [0, 0, 20]].map(([a, b, dy], o) => {
          const [x, y] = place(a, b), label = svg("text", { y: y + dy, "text-anchor": "middle", class: "axis" }, data.objectives[o]);
          root.append(label);
          const half = label.getComputedTextLength() / 2, at = Math.max(half, Math.min(width - half, x)); // whole, even if long
          label.setAttribute("x", at);
          return { label, left: at - half, right: at + half, below: y + dy + 16 };
        });
        if (ends[1].right + 8 > ends[2].left) ends[2].label.setAttribute("y", ends[2].below);
        root.addEventListener("click", (event) => {
          const box = root.getBoundingClientRect();
          const a = 1 - (event.clientY - box.top - top) / tall, b = 1 - (event.clientX - box.left - left) / side - a / 2;
          const values = [a, b, 1 - a - b].map((v) => Math.max(0, v));
          if (total(values) > 0) set(values.map((v) => v / total(values)));
        });
      });
    }

    function refresh() {
      const sum = total(raw);
      w = sum > 0 ? raw.map((v) => v / sum) : raw.map(() => 1 / k);
      inputs.forEach((input, i) => {
        input.value = Math.round(100 * raw[i]);
        outputs[i].textContent = percent(w[i]);
        input.setAttribute("aria-valuetext", `${data.objectives[i]} ${percent(w[i])} of the weight`);
      });
      const { means, order, lead, clear } = compare(fronts, w);
      const low = Math.min(0, ...means.map((m) => m.mean)), high = Math.max(1, ...means.map((m) => m.mean));
      scale.replaceChildren(...[low, (low + high) / 2, high].map((v) => html("span", {}, String(+v.toPrecision(3)))));
      const at = (v) => `${(100 * (Math.min(high, Math.max(low, v)) - low)) / (high - low)}%`;
      rows.forEach(({ bar, whisker, value }, i) => {
        const { mean: m, half } = means[i];
        bar.style.width = at(m);
        if (isFinite(half)) { whisker.style.left = at(m - half); whisker.style.right = `calc(100% - ${at(m + half)})`; }
        value.textContent = number(m);
      });
      const [first, second] = order.map((i) => name(fronts[i].of));
      const gap = number(lead.mean) + (isFinite(lead.half) ? ` ± ${number(lead.half)}` : "");
      verdict.textContent = order.length < 2 ? `At these weights ${first} is worth ${number(means[order[0]].mean)}.`
        : lead.mean < 1e-9 ? `At these weights ${first} and ${second} are worth the same.`
          : clear ? `At these weights ${first} wins, ahead of ${second} by ${gap}.`
            : `At these weights ${first} is ahead of ${second} by ${gap}: no difference beyond chance.`;
      if (sum <= 0) verdict.textContent = `No weight is set, so all count equally. ${verdict.textContent}`;
      redraws.forEach((redraw) => redraw());
    }

    const note = html("p", { class: "soft" }, `Worth of a policy: the mean over ${data.frontPrompts} prompts of the best w·r in its pool, computed exactly for every weighting. `,
      "Intervals are 95 %, differences prompt by prompt. ", fronts.length > 1 ? "Coloured areas show the best policy; in pale areas, or those with a question mark, its lead is within chance." : "");
    root.querySelector(".live").replaceChildren(html("div", { class: "weights" },
      ...(k === 3 ? [html("div", {}, sliders, buttons, verdict, barList, overall), figures] : [html("div", {}, sliders, buttons), html("div", {}, verdict, barList, overall)])), pictures, note);
    refresh();
  }

  // ---- reward space: the fronts of all prompts, or the sets of one

  function space(root) {
    const k = data.objectives.length;
    const options = (list, chosen) => list.map((text, i) => html("option", { value: i, selected: i === chosen }, text));
    const choices = [...(data.fronts.length ? [`fronts of ${data.frontPrompts} prompts`] : []), ...(data.prompts.length ? ["the sets of one prompt"] : [])];
    const spread = (o) => new Set(data.fronts.flatMap((f) => f.prompts.flat()).map((v) => v[o])).size;
    const varied = data.objectives.map((_, o) => o).sort((a, b) => spread(b) - spread(a)).slice(0, 2).sort((a, b) => a - b);
    let prompt = null; // the record of the chosen prompt
    const choose = (label, list, chosen) => {
      const select = html("select", {}, ...options(list, chosen));
      select.addEventListener("change", () => redraw());
      return [select, html("label", {}, `${label} `, select)];
    };
    const [which, whichLabel] = choose("show", choices, 0);
    const place = html("input", { type: "number", min: 0, max: data.prompts.length - 1, value: 0, "aria-label": "number of the prompt" });
    const load = () => unpack(Math.min(data.prompts.length - 1, Math.max(0, Math.floor(+place.value) || 0)), (record) => { prompt = record; redraw(); });
    which.addEventListener("change", load);
    place.addEventListener("change", load);
    const one = html("label", {}, "prompt ", place);
    const [across, acrossLabel] = choose("across", data.objectives, varied[0]);
    const [up, upLabel] = choose("up", data.objectives, varied[1]);
    const hidden = new Set();
    const policies = [...new Set([...data.fronts.map((f) => f.of), ...data.prompts.flatMap((line) => line.of)])].sort((a, b) => a - b);
    const toggles = html("div", { class: "controls" }, ...policies.map((i) => {
      const button = html("button", { type: "button", class: "toggle", "aria-pressed": "true" }, svg("svg", { class: "swatch", viewBox: "-15 -8 30 16", "aria-hidden": "true" }, marker(i, 0, 0, 6)), name(i));
      button.addEventListener("click", () => {
        if (!hidden.delete(i)) hidden.add(i);
        button.setAttribute("aria-pressed", String(!hidden.has(i)));
        redraw();
      });
      return button;
    }));
    const said = html("p", { class: "soft", "aria-live": "polite" });
    const holder = html("div", { class: "chart" });
    const redraw = sized(holder, draw);

    function marker(i, x, y, r) {
      const d = ["M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0Z", "M-.9-.9h1.8v1.8h-1.8Z", "M0-1.15L1.1.85H-1.1Z", "M0-1.25L1.1 0 0 1.25-1.1 0Z", "M-.35-1h.7v.65H1v.7H.35V1h-.7V.35H-1v-.7h.65Z"][i % 5];
      return svg("path", { d, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${r.toFixed(2)})`, fill: style(i).colour, class: "marker" });
    }

    function draw(width) {
      const a = +across.value, b = +up.value, single = choices[+which.value] === "the sets of one prompt";
      one.hidden = !single;
      if (single && !prompt) return load();
      const groups = single
        ? prompt.policies.map((p) => ({ of: p.of, sets: p.responses.map((r) => r.set.map((c) => p.candidates[c].rewards)) }))
        : data.fronts.map((front) => ({ of: front.of, sets: front.prompts }));
      const visible = groups.filter((group) => !hidden.has(group.of));
      const pair = (v) => (known(v[a]) && known(v[b]) ? [v[a], v[b]] : null);
      const every = groups.flatMap((group) => group.sets.flat().map(pair)).filter(known);
      const reach = (d) => {
        const low = Math.min(0, ...every.map((p) => p[d])), high = Math.max(1, ...every.map((p) => p[d]));
        return [low - (high - low) * 0.08, high + (high - low) * 0.08];
      };
      const side = Math.min(width, 520);
      const plot = axes(side, side, { x: reach(0), y: reach(1), xLabel: data.objectives[a], yLabel: data.objectives[b],
        title: `${choices[+which.value]}: ${data.objectives[b]} against ${data.objectives[a]}` });
      const counts = [];
      visible.forEach((group, place) => {
        const shift = (place - (visible.length - 1) / 2) * 9; // draw coinciding policies side by side
        const X = (v) => plot.X(v) + shift, Y = (v) => plot.Y(v) - shift * 0.35;
        const bins = new Map();
        const shapes = new Map();
        for (const set of group.sets) {
          const points = set.map(pair).filter(known).map((p) => p.map((v) => v.toFixed(2)).join(" "));
          for (const p of points) bins.set(p, (bins.get(p) || 0) + 1);
          const corners = [...new Set(points)].sort();
          if (single && corners.length > 1) shapes.set(corners.join(","), (shapes.get(corners.join(",")) || 0) + 1);
        }
        for (const [key, count] of shapes) {
          const corners = key.split(",").map((p) => p.split(" ").map(Number));
          plot.root.append(svg("path", { d: `M${corners.map((p) => `${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`).join("L")}Z`, class: "set",
            stroke: style(group.of).colour, fill: style(group.of).colour, "stroke-width": 1 + Math.sqrt(count - 1) }));
        }
        const most = Math.max(1, ...bins.values());
        for (const [key, count] of bins) {
          const p = key.split(" ").map(Number), dot = marker(group.of, X(p[0]), Y(p[1]), 3.5 + 7 * Math.sqrt(count / most) * (most > 1));
          dot.append(svg("title", {}, `${name(group.of)}: ${count} at ${data.objectives[a]} ${p[0]}, ${data.objectives[b]} ${p[1]}`));
          plot.root.append(dot);
        }
        counts.push(`${name(group.of)} ${bins.size}`);
      });
      said.textContent = `Different points: ${counts.join(", ")}. ${single ? `Prompt ${prompt.number}; a shape joins the candidates of one response` : "These are the non-dominated candidates of each pool"}; a larger mark stands for more candidates. Marks of several policies at one point are drawn side by side.`;
      holder.replaceChildren(plot.root);
    }

    root.querySelector(".live").replaceChildren(html("div", { class: "space" }, html("div", {}, html("div", { class: "controls" }, whichLabel, one, acrossLabel, upLabel), toggles, said), holder));
  }

  // ---- prompts: a list to search and sort; opening a prompt unpacks its block

  const blocks = [...document.querySelectorAll("script[data-block]")];
  const records = new Map();
  async function unpack(place, then) {
    if (!records.has(place)) {
      const bytes = Uint8Array.from(atob(blocks[place].textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      records.set(place, JSON.parse(await new Response(stream).text()));
    }
    then(records.get(place));
  }

  const AT_ONCE = 25, CANDIDATES_AT_ONCE = 10;
  const soft = (words) => words.split(/(?<=_)/).flatMap((part, i) => (i ? [html("wbr", {}), part] : [part])); // may break after _

  function prompts(root) {
    const known = (values) => values.filter((v) => v !== null);
    const gap = (line) => (known(line.best).length > 1 ? Math.max(...known(line.best)) - Math.min(...known(line.best)) : 0);
    const solvers = (line) => line.solved.filter(Boolean).length;
    const sorts = {
      "by number": (a, b) => a.number - b.number,
      "widest gap between policies first": (a, b) => gap(b) - gap(a),
      "least solved first": (a, b) => solvers(a) - solvers(b) || Math.max(...known(a.best), 0) - Math.max(...known(b.best), 0),
      "most diverse first": (a, b) => Math.max(...b.apart) - Math.max(...a.apart),
    };
    const some = data.prompts.some(solvers);
    const filters = { "all prompts": () => true };
    if (some && data.prompts[0].of.length > 1) {
      data.prompts[0].of.forEach((i, at) => { filters[`only ${name(i)} solves`] = (line) => solvers(line) === 1 && line.solved[at]; });
    }
    if (some) Object.assign(filters, { "none solves": (line) => !solvers(line), "all solve": (line) => solvers(line) === line.of.length });
    const choose = (label, choices) => {
      const select = html("select", {}, ...Object.keys(choices).map((text) => html("option", {}, text)));
      select.addEventListener("change", () => refresh());
      return [select, html("label", {}, `${label} `, select)];
    };
    const find = html("input", { type: "search", placeholder: "words or a number", "aria-label": "find a prompt" });
    const [sort, sortLabel] = choose("sorted", sorts);
    const [filter, filterLabel] = choose("show", filters);
    const count = html("p", { class: "soft", "aria-live": "polite" });
    const list = html("div", {});
    const more = html("button", { type: "button" }, `${AT_ONCE} more`);
    let shown = [], pinned = null;
    find.addEventListener("input", () => refresh());
    more.addEventListener("click", () => extend());

    function refresh() {
      const words = find.value.trim().toLowerCase();
      shown = data.prompts.map((line, place) => ({ ...line, place }))
        .filter((line) => filters[filter.value](line) && (!words || String(line.number) === words || line.text.toLowerCase().includes(words)))
        .sort(sorts[sort.value]);
      if (pinned !== null) shown = [...shown.filter((line) => line.number === pinned), ...shown.filter((line) => line.number !== pinned)];
      list.replaceChildren();
      extend();
    }

    function extend() {
      const next = shown.slice(list.childElementCount, list.childElementCount + AT_ONCE);
      list.append(...next.map(row));
      more.hidden = list.childElementCount >= shown.length;
      count.textContent = shown.length === data.prompts.length && more.hidden ? `${shown.length} prompts.` : `${list.childElementCount} of ${shown.length} prompts${shown.length < data.prompts.length ? `, of ${data.prompts.length} in all` : ""}.`;
    }

    function row(line) {
      const scores = line.of.map((i, at) => `${name(i)} ${number(line.best[at])}${line.solved[at] ? " ✓" : ""}`).join(" · ");
      const text = line.text.length > 70 ? `${line.text.slice(0, 70)}…` : line.text;
      const details = html("details", { name: "prompt", id: `prompt-${line.number}` },
        html("summary", {}, `Prompt ${line.number} `, html("span", { class: "soft" }, text), html("span", { class: "scores" }, scores)));
      details.addEventListener("toggle", () => {
        if (details.open && details.childElementCount === 1) unpack(line.place, (record) => details.childElementCount === 1 && details.append(...promptParts(record)));
      });
      return details;
    }

    root.querySelector(".live").replaceChildren(html("div", { class: "controls" }, html("label", {}, "find ", find), sortLabel, filterLabel), count, list, more);
    refresh();
    list.firstElementChild.open = true;
    return (wanted) => { // opens a prompt, even if the list does not show it
      if (!data.prompts.some((line) => line.number === wanted)) return;
      let details = document.getElementById(`prompt-${wanted}`);
      if (!details) {
        find.value = "";
        filter.selectedIndex = 0;
        pinned = wanted;
        refresh();
        details = document.getElementById(`prompt-${wanted}`);
      }
      details.open = true;
      details.scrollIntoView();
    };
  }

  const text = (label, content) => html("pre", { tabindex: 0, role: "region", "aria-label": label }, content);

  function promptParts(record) {
    const parts = [text(`Prompt ${record.number}`, record.prompt)];
    if (record.label !== null) parts.push(html("details", {}, html("summary", {}, "Label"), text(`Label of prompt ${record.number}`, record.label)));
    if (record.drawing) parts.push(legendOf(record.drawing));
    const policies = record.policies.map((policy) => policyParts(record, policy));
    parts.push(html("div", { class: record.drawing ? "columns" : null }, ...policies));
    return parts;
  }

  function legendOf(drawing) {
    const tiles = [...new Map(drawing.tiles.map((tile) => [tile.name, tile])).values()];
    return html("p", { class: "soft" }, ...tiles.map((tile) => html("span", { class: "key" },
      svg("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, svg("rect", { width: 1, height: 1, class: `tile-${tile.colour}` }), svg("text", { x: 0.5, y: 0.5 }, tile.symbol)), tile.name)),
      "A line is a route; a thicker line was written more often.");
  }

  // Candidates that visit the same tiles share a line. Lines are shifted, so that those over one tile stay apart.
  function linesOf(policy) {
    const paths = new Map();
    for (const candidate of policy.candidates) {
      if (!candidate.route) continue;
      const visited = candidate.route.filter(([x, y], i, all) => !i || all[i - 1][0] !== x || all[i - 1][1] !== y);
      const key = visited.join(" ");
      if (!paths.has(key)) paths.set(key, { visited, count: 0 });
      paths.get(key).count += candidate.count;
      candidate.line = [...paths.keys()].indexOf(key);
    }
    const every = [...paths.values()], sum = every.reduce((total, line) => total + line.count, 0), lanes = Math.min(every.length, 7);
    return every.map(({ visited, count }, i) => {
      const shift = lanes === 1 ? 0.5 : 0.5 + ((i % lanes) / (lanes - 1) - 0.5) * 0.5;
      return { points: visited.map(([x, y]) => `${(x + shift).toFixed(2)},${(y + shift).toFixed(2)}`).join(" "), end: visited.at(-1).map((v) => v + shift), width: 0.06 + 0.1 * Math.sqrt(count / sum) };
    });
  }

  function policyParts(record, policy) {
    const parts = [html("h3", {}, swatch(policy.of), name(policy.of))];
    if (record.drawing) {
      const { width, height, tiles } = record.drawing, lines = linesOf(policy), colour = style(policy.of).colour;
      const grid = [...Array(width - 1).keys()].map((i) => svg("line", { class: "lines", x1: i + 1, x2: i + 1, y1: 0, y2: height }))
        .concat([...Array(height - 1).keys()].map((i) => svg("line", { class: "lines", x1: 0, x2: width, y1: i + 1, y2: i + 1 })));
      parts.push(svg("svg", { class: "drawing", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Routes of ${name(policy.of)} at prompt ${record.number}: ${lines.length} different` },
        ...tiles.map((tile) => svg("rect", { x: tile.x, y: tile.y, width: 1, height: 1, class: `tile-${tile.colour}` })), ...grid,
        svg("g", {}, ...lines.map((line, i) => svg("g", { "data-route": i }, svg("polyline", { points: line.points, stroke: colour, "stroke-width": line.width }), svg("circle", { cx: line.end[0], cy: line.end[1], r: 0.14, fill: colour })))),
        ...tiles.filter((tile) => tile.symbol).map((tile) => svg("text", { x: tile.x + 0.5, y: tile.y + 0.5 }, tile.symbol))));
    }
    const columns = 1 + data.objectives.length;
    const body = html("tbody", {});
    const rows = policy.candidates.map((candidate) => () => {
      const button = candidate.line === undefined ? null : html("button", { type: "button", class: "route", value: candidate.line, "aria-pressed": "false" }, "show");
      const times = candidate.count > 1 ? html("small", {}, ` written ${candidate.count} times`) : null;
      return [html("tr", { class: "text" }, html("td", { colspan: columns }, ...[button, html("code", {}, candidate.text), times].filter((node) => node))),
        html("tr", {}, html("td", { class: "value" }, number(candidate.value) + (candidate.solved ? " ✓" : "")), ...candidate.rewards.map((r) => {
          const cell = html("td", { class: "reward" }, r === null ? "–" : r.toFixed(2));
          cell.style.setProperty("--share", Math.min(1, Math.max(0, r || 0)));
          return cell;
        }))];
    });
    const node = html("div", { class: "policy", "data-policy": true });
    let mark; // highlights the pressed route
    const add = (from, to) => { body.append(...rows.slice(from, to).flatMap((make) => make())); mark(); };
    const rest = html("button", { type: "button" }, `all ${rows.length} candidates`);
    rest.addEventListener("click", () => { rest.remove(); add(CANDIDATES_AT_ONCE); });
    if (!rows.length) body.append(html("tr", {}, html("td", { colspan: columns }, "No candidate could be read from its responses.")));
    parts.push(html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Candidates of ${name(policy.of)} at prompt ${record.number}` },
      html("table", { class: "candidates" }, html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "value"), ...data.objectives.map((objective) => html("th", { scope: "col" }, ...soft(objective))))), body)));
    if (rows.length > CANDIDATES_AT_ONCE) parts.push(rest);
    if (policy.missing) parts.push(html("p", { class: "soft" }, `${policy.missing} candidate${policy.missing > 1 ? "s" : ""} missing: requested but not found in the response.`));
    const written = html("details", {}, html("summary", {}, `${policy.responses.length} response${policy.responses.length > 1 ? "s" : ""}, as written`));
    written.addEventListener("toggle", () => {
      if (written.open && written.childElementCount === 1) written.append(...policy.responses.map((response, i) => text(`Response ${i + 1} of ${name(policy.of)}`, response.text)));
    });
    if (policy.responses.length) parts.push(written);
    node.append(...parts);
    mark = routes(node);
    add(0, CANDIDATES_AT_ONCE);
    return node;
  }

  // Bring the line of a route to the front when its candidate is pressed or under the pointer.
  function routes(policy) {
    const lines = [...policy.querySelectorAll("[data-route]")];
    const show = (chosen) => {
      lines.forEach((route) => route.classList.toggle("on", route.dataset.route === chosen));
      lines.forEach((route) => route.dataset.route === chosen && route.parentNode.append(route)); // on top
    };
    let pressed = lines.length ? lines[0].dataset.route : null;
    const mark = () => {
      policy.querySelectorAll("button.route").forEach((b) => b.setAttribute("aria-pressed", String(b.value === pressed)));
      show(pressed);
    };
    policy.addEventListener("click", (event) => {
      const button = event.target.closest("button.route");
      if (button) { pressed = pressed === button.value ? null : button.value; mark(); }
    });
    policy.addEventListener("pointerover", (event) => {
      const button = event.target.closest("tr.text")?.querySelector("button.route");
      show(button ? button.value : pressed);
    });
    policy.addEventListener("pointerleave", () => show(pressed));
    return mark;
  }

  document.body.append(patterns());
  for (const id of Object.keys(data.charts)) {
    const root = document.querySelector(`[data-chart="${id}"]`);
    if (root) curves(root, id);
  }
  const at = (id, draw, wanted) => {
    const section = document.getElementById(id);
    if (!section || !wanted) return;
    draw(section);
    section.hidden = document.querySelector(`nav a[href="#${id}"]`).hidden = false;
    document.getElementById(`without-${id}`)?.remove();
  };
  at("weights", weights, data.fronts.length);
  at("space", space, data.objectives.length > 1 && (data.fronts.length || data.prompts.length));
  const show = data.prompts.length ? prompts(document.getElementById("prompts")) : () => {};
  const open = () => { // a link to a prompt opens it
    const wanted = /^#prompt-(\d+)$/.exec(location.hash);
    if (wanted) show(+wanted[1]);
  };
  window.addEventListener("hashchange", open);
  open();
})();
